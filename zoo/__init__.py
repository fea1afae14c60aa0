"""How the shipped model emoji-sd was made: its data, its parts, their training, and whether it is good enough."""
