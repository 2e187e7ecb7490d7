"""Makes ``av1_film.webm``: 12 frames of AV1, 96 by 64.

The film is shipped, since the encoder (SVT-AV1) gives the whole process that it runs in real-time priority where that
is root's, and what this process starts inherits it: other processes then wait for ever.

Run it: python tests/data/av1_film.py
"""

from pathlib import Path

import av
import numpy as np

FILM = Path(__file__).with_name("av1_film.webm")


def main() -> None:
    """Encode the film."""
    with av.open(FILM, "w", format="webm") as file:
        stream = file.add_stream("libsvtav1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(12):
            pixels = np.full((64, 96, 3), 20 * number, np.uint8)
            pixels[8 : 8 + 4 * number, 16:80] = (200, 40, 90)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())


if __name__ == "__main__":
    main()
