#!/usr/bin/env python3
"""Writes images.txt beside it: what Pillow makes of small images. Needs `pip install pillow` (13.0 wrote the file); run again only to add cases.

Lines: name, argument, width, height, channels, pixels in hexadecimal. An operation's input is the last `input` line before it; a file's bytes stand
on its line as width 0."""
import io
import math
import pathlib
import random

import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

LINES = []


def add(name, argument, image):
    channels = len(image.getbands())
    LINES.append(f"{name} {argument:g} {image.width} {image.height} {channels} {image.tobytes().hex()}")


def picture(width, height, mode, seed):
    lots = random.Random(seed)
    pixels = bytearray()
    for y in range(height):
        for x in range(width):
            for c in range(len(mode.replace("L", "X"))):
                wave = 110 + 70 * math.sin(0.45 * x + 0.3 * c) * math.cos(0.35 * y + 0.8 * c)
                pixels.append(int(wave + lots.uniform(-25, 25)))
    return PIL.Image.frombytes(mode, (width, height), bytes(pixels))


FILL = (10, 130, 250)


def affine(image, matrix):
    fill = FILL if image.mode == "RGB" else FILL[0]
    return image.transform(image.size, PIL.Image.AFFINE, matrix, PIL.Image.NEAREST, fillcolor=fill)


def operations(image):
    add("input", 0, image)
    fill = FILL if image.mode == "RGB" else FILL[0]
    for degrees in (30, -17.5, 45):
        add("rotate", degrees, image.rotate(degrees, PIL.Image.NEAREST, fillcolor=fill))
    for threshold in (256, 128, 0):
        add("solarize", threshold, PIL.ImageOps.solarize(image, threshold))
    for bits in (4, 1):
        add("posterize", bits, PIL.ImageOps.posterize(image, bits))
    for factor in (0, 0.1, 1.9, 2.35):
        if image.mode == "RGB":
            add("color", factor, PIL.ImageEnhance.Color(image).enhance(factor))
        add("contrast", factor, PIL.ImageEnhance.Contrast(image).enhance(factor))
        add("brightness", factor, PIL.ImageEnhance.Brightness(image).enhance(factor))
        add("sharpness", factor, PIL.ImageEnhance.Sharpness(image).enhance(factor))
    for shear in (0.3, -0.15):
        add("shear_x", shear, affine(image, (1, shear, 0, 0, 1, 0)))
        add("shear_y", shear, affine(image, (1, 0, 0, shear, 1, 0)))
    for pixels in (5, -3):
        add("translate_x", pixels, affine(image, (1, 0, pixels, 0, 1, 0)))
        add("translate_y", pixels, affine(image, (1, 0, 0, 0, 1, pixels)))
    for size in ((8, 8), (32, 32), (9, 20), (17, 5), (5, 13)):
        add("resize", 0, image.resize(size, PIL.Image.BILINEAR))


def histograms(image):
    add("input", 0, image)
    add("autocontrast", 0, PIL.ImageOps.autocontrast(image))
    add("equalize", 0, PIL.ImageOps.equalize(image))


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    LINES.append(f"file 0 0 0 {len(image.getbands())} {file.getvalue().hex()}")
    add("decoded", 1, PIL.Image.open(io.BytesIO(file.getvalue())).convert("L" if image.mode == "L" else "RGB"))
    if file_format == "JPEG" and image.mode == "RGB":
        small = PIL.Image.open(io.BytesIO(file.getvalue()))
        small.draft("RGB", (image.width // 2, image.height // 2))
        add("decoded", 0.5, small)


operations(picture(17, 13, "RGB", 1))
operations(picture(17, 13, "L", 2))
histograms(picture(32, 24, "RGB", 3))
histograms(picture(32, 24, "L", 4))
encoded(picture(32, 22, "RGB", 5), "JPEG", quality=85)
encoded(picture(31, 21, "RGB", 6), "JPEG", quality=70, progressive=True)
encoded(picture(24, 16, "L", 7), "JPEG", quality=90)
encoded(picture(16, 16, "CMYK", 8), "JPEG", quality=90)
encoded(picture(15, 11, "RGB", 9), "PNG")
encoded(picture(15, 11, "RGB", 10).quantize(16), "PNG")
pathlib.Path(__file__).with_name("images.txt").write_text("\n".join(LINES) + "\n")
