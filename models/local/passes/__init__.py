"""Forward passes: which histories go through the model together, how, and what is drawn from them."""
