"""Where recray runs: launcher, Kubernetes and Docker files, and what checks them."""
