"""How the page looks: a quiet instrument panel with one accent colour. System fonts only; nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

LOGO = Path(__file__).with_name("logo.svg")  # the same file as assets/logo.svg, here for installed copies
STYLE = Path(__file__).with_name("style.css")

_FONTS = (
    "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "PingFang SC",
    "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC", "Source Han Sans SC", "sans-serif",
)  # fmt: skip
_MONO = (
    "ui-monospace",
    "SFMono-Regular",
    "Menlo",
    "Consolas",
    "DejaVu Sans Mono",
    "Noto Sans Mono CJK SC",
    "monospace",
)
# Verdigris, the one accent, and a warm grey like unbleached paper.
_ACCENT = gr.themes.Color(
    "#effaf8", "#d8f1ee", "#b3e2de", "#83cdc9", "#4db1b0", "#1f9496",
    "#0c7f83", "#0b666b", "#0d5257", "#0f4449", "#07292d", name="verdigris",
)  # fmt: skip
_PAPER = gr.themes.Color(
    "#faf9f7", "#f3f2ee", "#e6e4de", "#d3d0c8", "#a5a198", "#77746c",
    "#5a5851", "#44423d", "#2b2a27", "#1d1c1a", "#131312", name="paper",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """The Gradio theme; style.css adds what a theme cannot say."""
    made = gr.themes.Base(
        primary_hue=_ACCENT,
        secondary_hue=_ACCENT,
        neutral_hue=_PAPER,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.Font(name) for name in _FONTS],
        font_mono=[gr.themes.Font(name) for name in _MONO],
    )
    return made.set(
        body_background_fill="*neutral_100",
        body_background_fill_dark="*neutral_950",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_text_size="*text_sm",
        block_title_text_weight="600",
        block_title_text_size="*text_sm",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_info_text_size="*text_sm",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_width="1px",
        input_shadow="none",
        input_shadow_focus="0 0 0 3px color-mix(in srgb, *primary_500 22%, transparent)",
        input_border_color_focus="*primary_600",
        input_border_color_focus_dark="*primary_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_50",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        button_transform_hover="none",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="color-mix(in srgb, *primary_600 22%, transparent)",
        checkbox_label_border_color="*neutral_300",
        checkbox_label_border_color_dark="*neutral_700",
        checkbox_label_border_color_selected="*primary_400",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_600",
        checkbox_border_color_selected="*primary_600",
        slider_color="*primary_600",
    )


def style() -> str:
    """The style sheet's text."""
    return STYLE.read_text(encoding="utf-8")


def logo() -> str:
    """The logo's SVG source."""
    return LOGO.read_text(encoding="utf-8")
