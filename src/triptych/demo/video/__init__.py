"""Makes the videos of the demo model: a coloured shape that moves in one direction, or not at all."""
