"""What a person reads: text for the terminal, data frames, plots and the HTML report."""
