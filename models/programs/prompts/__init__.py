"""Methods that choose what is asked, of which model, and among the answers."""
