"""Render the emoji of a colour font, with their Unicode names as captions: a small folder of captioned pictures.

python examples/emoji_pictures.py OUT [FONT]

FONT is Noto Color Emoji (Debian: apt install fonts-noto-color-emoji). OUT gets 1f600.png with "grinning face" in
1f600.txt, and about 1,300 more.
"""

import sys
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109
"""The one size, in points, that the pictures in this font have."""
NO_PICTURES = ("EMOJI MODIFIER", "EMOJI COMPONENT", "REGIONAL INDICATOR", "COMBINING", "TAG ")
"""Characters that change others."""


def main(out: Path, font_file: Path = FONT) -> int:
    """Write the pictures, 136 px on white, and return how many there are."""
    font = ImageFont.truetype(str(font_file), STRIKE)
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for code in range(0x203C, 0x1FB00):
        name = unicodedata.name(chr(code), "")
        if not name or name.startswith(NO_PICTURES) or font.getmask(chr(code), mode="RGBA").getbbox() is None:
            continue
        left, top, right, bottom = font.getbbox(chr(code))
        side = int(max(right - left, bottom - top))
        picture = Image.new("RGB", (side, side), "white")
        at = (side - (right - left)) / 2 - left, (side - (bottom - top)) / 2 - top
        ImageDraw.Draw(picture).text(at, chr(code), font=font, embedded_color=True)
        picture.save(out / f"{code:x}.png")
        (out / f"{code:x}.txt").write_text(f"{name.lower()}\n")
        count += 1
    return count


if __name__ == "__main__":
    print(f"{sys.argv[1]}: {main(Path(sys.argv[1]), *map(Path, sys.argv[2:3]))} pictures")
