"""A report's figures as one SVG: what each variant costs and gains, and which layers are sensitive.

left   what each variant loses of quality, 1 − figure, on a logarithmic axis, beside how many times as fast it is; where
       only the chosen one was timed, beside how many layers it leaves out
right  1 − cosine with one layer alone quantized, the most sensitive first, on a logarithmic axis
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from headrace_server.models.quantization_report import QuantizationReport, Variant

__all__ = ["plotted"]

_WIDTH, _HEIGHT = 920, 380
_LEFT = (70, 40, 360, 270)  # x, y, width, height
_RIGHT = (660, 40, 220, 270)
_SHOWN_LAYERS = 12
_LEAST = 1e-6  # what is lost by less is drawn as if by this
_INK, _PALE, _CHOSEN = "#333333", "#bbbbbb", "#b2182b"


def plotted(report: QuantizationReport) -> str:
    """The SVG's text."""
    title = f"{report.model}/{report.version}: {report.mode} for {report.target}"
    body = [_text(_WIDTH / 2, 22, title, anchor="middle", size=15), *_tried(report.variants), *_layers(report)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _tried(variants: Sequence[Variant]) -> list[str]:
    """Variants by their speed; where fewer than two were timed, by the number of layers that they leave out."""
    by_speed = sum(variant.speedup > 0 for variant in variants) > 1
    shown = [variant for variant in variants if variant.speedup > 0 or not by_speed]
    x, y, width, height = _LEFT
    axis = "times as fast" if by_speed else "layers left out"
    lines = [_frame(_LEFT), _text(x + width / 2, y + height + 42, axis, anchor="middle")]
    lines.append(_text(x, y - 6, "quality lost (1 − figure)"))
    if not shown:
        return [*lines, _text(x + width / 2, y + height / 2, "one variant was tried", anchor="middle")]
    places = [variant.speedup if by_speed else float(len(variant.excluded)) for variant in shown]
    losses = [_loss(variant.quality) for variant in shown]
    low, high = _decades(losses)
    lines += [_grid_y(_LEFT, power, low, high) for power in range(low, high + 1)]
    most = max(1.5, *places) * 1.1
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if most / step < 8)
    for at in range(int(most / step) + 1):
        lines.append(_text(x + width * at * step / most, y + height + 18, f"{at * step:g}", anchor="middle", size=11))
    for variant, place, loss in zip(shown, places, losses, strict=True):
        place_x, place_y = x + width * place / most, _level(_LEFT, loss, low, high)
        colour = _CHOSEN if variant.chosen else _INK
        lines.append(f'<circle cx="{place_x:.1f}" cy="{place_y:.1f}" r="4" fill="{colour}"/>')
        if variant.chosen or by_speed:
            right = place_x > x + width * 0.55
            name = f"{variant.name}, {variant.speedup:.2f} times as fast" if variant.speedup else variant.name
            anchor = "end" if right else "start"
            lines.append(_text(place_x + (-8 if right else 8), place_y + 4, name, anchor=anchor, size=11))
    return lines


def _layers(report: QuantizationReport) -> list[str]:
    x, y, width, height = _RIGHT
    worst = sorted(report.sensitivity.items(), key=lambda item: item[1])[:_SHOWN_LAYERS]
    lines = [_frame(_RIGHT), _text(x, y - 6, "1 − cosine, one layer alone")]
    if not worst:
        return [*lines, _text(x + width / 2, y + height / 2, "layers were not searched", anchor="middle")]
    low, high = _decades([_loss(cosine) for _, cosine in worst])
    row = height / _SHOWN_LAYERS
    for at, (name, cosine) in enumerate(worst):
        share = (math.log10(_loss(cosine)) - low) / (high - low)
        top = y + at * row + 2
        colour = _CHOSEN if name in report.excluded else _INK
        size = f'width="{max(1.0, width * share):.1f}" height="{row - 4:.1f}"'
        lines.append(f'<rect x="{x}" y="{top:.1f}" {size} fill="{colour}"/>')
        shown = name if len(name) <= 30 else f"…{name[-29:]}"
        lines.append(_text(x - 6, top + row / 2 + 2, shown, anchor="end", size=10))
    for power in range(low, high + 1):
        place = x + width * (power - low) / (high - low)
        lines.append(_text(place, y + height + 18, f"1e{power}", anchor="middle", size=11))
    lines.append(_text(x + width / 2, y + height + 42, "left out: red", anchor="middle", size=11))
    return lines


def _loss(quality: float) -> float:
    return max(_LEAST, 1 - quality)


def _decades(losses: Sequence[float]) -> tuple[int, int]:
    """Powers of ten around all of them, at least one apart."""
    low = math.floor(math.log10(min(losses)))
    return low, max(low + 1, math.ceil(math.log10(max(losses))))


def _level(box: tuple[int, int, int, int], loss: float, low: int, high: int) -> float:
    _, y, _, height = box
    return y + height * (high - math.log10(loss)) / (high - low)


def _grid_y(box: tuple[int, int, int, int], power: int, low: int, high: int) -> str:
    x, _, width, _ = box
    level = _level(box, 10.0**power, low, high)
    line = f'<line x1="{x}" y1="{level:.1f}" x2="{x + width}" y2="{level:.1f}" stroke="{_PALE}" stroke-width="0.5"/>'
    return line + _text(x - 6, level + 4, f"1e{power}", anchor="end", size=11)


def _frame(box: tuple[int, int, int, int]) -> str:
    x, y, width, height = box
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="none" stroke="{_PALE}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{_INK}">{escape(text)}</text>'
    )
