"""What a text is: strings to tokens and back, and the tree in which equal histories share their nodes."""
