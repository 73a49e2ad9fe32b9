"""From a bundle to lists: scores, filters, re-ranking, reasons and facts about items."""
