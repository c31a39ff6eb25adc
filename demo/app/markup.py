"""HTML that is made here; whatever users wrote is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image
from torch import Tensor

from diffalign.preferences import Agreement, Score
from diffalign_demo.app.ranking import Ascent
from diffalign_demo.app.training import Progress

STATES = {
    "none": "No run yet.",
    "running": "▶ Running",
    "done": "✓ Done",
    "unfinished": "▸ Not finished",
    "stopped": "■ Stopped",
    "failed": "✗ Failed",
}


def source(image: Tensor) -> str:
    """A picture (3, H, W) in [0, 1] as a data URL."""
    pixels = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def note(text: str) -> str:
    """What to do where there is nothing to see."""
    return f'<div class="da-note">{escape(text)}</div>'


def frame(image: Tensor | None, caption: str, empty: str = "") -> str:
    """A picture in a box whose size does not depend on it."""
    inside = f'<img src="{source(image)}" alt="{escape(caption)}">' if image is not None else escape(empty)
    below = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure class="da-figure"><div class="da-box">{inside}</div>{below}</figure>'


def ranking(ascent: Ascent | None) -> str:
    """The pictures of a round, to be clicked in order."""
    if ascent is None:
        return note(
            "Write a prompt and press Start: you put pictures in order, and the next ones get closer to what you like."
        )
    picks = "".join(_pick(picture, place) for place, picture in enumerate(ascent.pictures))
    return (
        f'<div class="da-rank" data-showing="{ascent.showing}" data-best="{ascent.best}">'
        f'<p class="da-ask" role="status">{_asked(ascent)}</p><div class="da-grid">{picks}</div>'
        '<div class="da-row"><button type="button" class="da-button da-clear">Start the order again</button>'
        '<button type="button" class="da-button da-main da-go" disabled>Next round</button></div></div>'
    )


def before_after(prompts: Sequence[str], before: Tensor, after: Tensor | None, w: float) -> str:
    """Held-out pictures from the same seeds, the base model's above those at strength w."""
    rows: list[tuple[str, Tensor | None, str]] = [("Before", before, "as the model was")]
    title = "After: nothing was trained yet" if after is None else f"After, at strength {w:g}"
    rows.append((title, after, "as it is now"))
    told = "".join(
        f"<h4>{name}</h4><div class='da-strip'>{_strip(prompts, images, what)}</div>"
        for name, images, what in rows
    )
    return f'<div class="da-heldout">{told}</div>'


def progress(now: Progress, waits: int, problem: str) -> str:
    """How far the training is, in words and as a bar."""
    if now.state == "none":
        return note(
            "No training run yet. Vote in the tab Compare first (about 100 decided votes), then press Train."
        )
    share = 100 * now.done / now.rounds if now.rounds else 0
    bar = f'<progress max="100" value="{share:.0f}" aria-label="rounds that are done"></progress>'
    said = f'<pre class="da-said">{escape(now.words)}</pre>' if now.state == "failed" else ""
    trouble = note(problem) if problem else ""
    told = f"<b>{STATES[now.state]}</b> · {escape(now.name)} · round {now.done} of {now.rounds or '?'}"
    told += f" · waits for {waits} vote(s) on what the model is now: go on in Compare" if waits else ""
    return f'<div class="da-progress"><p role="status">{told}</p>{bar}{said}{trouble}</div>'


def arena(scores: Sequence[Score], agreed: Agreement, flagged: dict[str, list[str]]) -> str:
    """The table of models, best first, with a bar for each interval; then who agrees with whom."""
    if not scores:
        return note(
            "Nobody has compared two models yet. Open the tab Compare and choose 'Judge: two models'; that needs a "
            "trained model (tab Align), or models given with --judge."
        )
    low, high = min(s.low for s in scores), max(s.high for s in scores)
    rows = "".join(_row(place, score, low, high) for place, score in enumerate(scores, 1))
    head = "<tr><th>#<th>Model<th>Score and 95 % interval, in logits<th>Wins<th>Pairs</tr>"
    table = f'<table class="da-table"><thead>{head}</thead><tbody>{rows}</tbody></table>'
    return f'<div class="da-scroll">{table}</div>{_people(agreed, flagged)}'


def _asked(ascent: Ascent) -> str:
    what = (
        f"choose the {ascent.best} best of {len(ascent.pictures)}, the best first"
        if ascent.stage == "queries"
        else "choose the best one; the first is where you are"
    )
    return f"<b>Round {ascent.round}</b> of “{escape(ascent.prompt)}”: {what}."


def _pick(picture: str, place: int) -> str:
    return (
        f'<button type="button" class="da-pick" data-id="{picture}" aria-label="Picture {place + 1}">'
        f'<span class="da-box"><img src="/api/picture/{picture}" alt=""></span><span class="da-badge"></span></button>'
    )


def _strip(prompts: Sequence[str], images: Tensor | None, what: str) -> str:
    """Small pictures with their prompts; empty boxes of the same size where there are none."""
    inside = ["·"] * len(prompts)
    if images is not None:
        alts = [f"{escape(prompt)}, {what}" for prompt in prompts]
        inside = [f'<img src="{source(x)}" alt="{alt}">' for x, alt in zip(images, alts, strict=True)]
    return "".join(
        f'<figure class="da-small"><div class="da-box">{each}</div><figcaption>{escape(prompt)}</figcaption></figure>'
        for prompt, each in zip(prompts, inside, strict=True)
    )


def _row(place: int, score: Score, low: float, high: float) -> str:
    span = max(high - low, 1e-9)
    left, width, dot = ((score.low - low) / span, (score.high - score.low) / span, (score.score - low) / span)
    bar = (
        f'<span class="da-interval" aria-hidden="true"><i style="left:{100 * left:.1f}%;width:{100 * width:.1f}%"></i>'
        f'<b style="left:{100 * dot:.1f}%"></b></span>'
    )
    words = f"{score.score:+.2f} ({score.low:+.2f} to {score.high:+.2f})"
    cells = (place, escape(score.model), f"{bar}<span>{words}</span>", f"{score.wins:g}", score.games)
    return f"<tr>{''.join(f'<td>{cell}' for cell in cells)}</tr>"


def _people(agreed: Agreement, flagged: dict[str, list[str]]) -> str:
    same = (
        f"People agree to α = {agreed.alpha:.2f} (Krippendorff; 1 is always, 0 no more than by chance) on "
        f"{agreed.pairs} pairs that {agreed.users} users saw."
        if agreed.alpha == agreed.alpha
        else "No pair was judged by two users who do not always say the same: who agrees with whom cannot be said yet."
    )
    odd = "".join(f"<li><b>{escape(user)}</b> {escape('; '.join(why))}</li>" for user, why in flagged.items())
    told = f"<p>Answers that look random (they are counted all the same):</p><ul>{odd}</ul>" if odd else ""
    return f'<div class="da-people"><p>{same}</p>{told}</div>'
