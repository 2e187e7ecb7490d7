"""What the demo model knows of videos: a coloured shape, and which way it moves."""
