"""The forms in which a recipe's model can be written: ``plain``, ``compact``, ``mergekit``; and which one is taken.

Every merge is written ``plain``: a checkpoint of the model's own class. Only routes have more forms. ``plain`` stores
every hop as a block of its own, with scales folded into its weights; ``compact`` stores each block once, with model
code that runs the hops; ``mergekit`` is mergekit's YAML and no weights. ``auto`` is plain where scales fold, else
compact.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from evomerge.engine.adapted_models import open_for_output
from evomerge.engine.compact_route import CompactRoute, compact_route
from evomerge.engine.folding import CannotFold, Folding, fold_route
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.output_plan import OutputUnit, in_file_order, plan_output
from evomerge.errors import UserError
from evomerge.recipes.recipe import Node, Recipe, Route

FORMS = ("auto", "plain", "compact", "mergekit")
PLAIN_NOTE = "An ordinary checkpoint: every hop is a block of its own, and loading needs no code of this model's own."
FOLDED_NOTE = " Folding rounds what a hop adds to the hidden states once more than the source models do."
COMPACT_NOTE = (
    "Every block is stored once and `modeling_route.py` runs the hops. Read that file and `hop_shells.py`, then load "
    "the model with `AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)`."
)
MERGEKIT_NOTE = "`mergekit_config.yml` makes the model with mergekit; there are no weights here."

BY_PLACE = ("scale_attn_by_inverse_layer_idx",)  # settings by which a block's number enters its arithmetic


@dataclass(frozen=True)
class ExportPlan:
    """How a recipe's model is going to be written.

    Attributes:
        form: ``plain`` or ``compact``.
        reason: why that form, for a person; empty where there is only one.
        recipe: what is written.
        models: its models, opened for the model that results.
        stored: what the stored weights are made of; of a compact form each block once.
        stored_models: the models opened for that.
        folding: what becomes of single tensors.
        compact: what a compact form holds beside weights.
    """

    form: str
    reason: str
    recipe: Recipe
    models: OpenModels
    stored: Node
    stored_models: OpenModels
    folding: Folding = field(default_factory=Folding)
    compact: CompactRoute | None = None

    def units(self) -> list[OutputUnit]:
        """Every tensor of the checkpoint, in the order of the files."""
        found = plan_output(replace(self.recipe, model=self.stored), self.stored_models)
        return found if self.compact is None else in_file_order([*found, *self.compact.units])

    @property
    def note(self) -> str:
        """For the model card: the form and how to load it; empty where there is only one form."""
        if not self.reason:
            return ""
        folded = FOLDED_NOTE if isinstance(self.stored, Route) and self.stored.is_scaled else ""
        return f"{self.form}: {self.reason}. {COMPACT_NOTE if self.compact is not None else PLAIN_NOTE + folded}"


def plan_export(recipe: Recipe, form: str = "auto") -> ExportPlan:
    """Open a recipe's models and choose the form.

    Args:
        recipe: what to write.
        form: ``auto``, ``plain`` or ``compact``.

    Raises:
        InvalidInput: models that are missing or do not fit, blocks that are not there; all at once.
        UserError: the recipe cannot be written in that form; says why.
    """
    check_form(recipe, form)
    models, root = open_for_output(recipe)
    if not isinstance(root, Route):
        return ExportPlan("plain", "", recipe, models, root, models)
    _check_places(root, models)
    hops = f"{len(root.hops)} hops"
    reason = f"{hops}, as asked for"
    if form != "compact":
        try:
            folding = fold_route(root, models.architecture)
        except CannotFold as error:
            reason = str(error)
            if form == "plain":
                raise CannotFold(f"the route cannot be written as a plain checkpoint: {reason}; use compact") from error
        else:
            return ExportPlan("plain", f"{hops}, {folding.summary}", recipe, models, root, models, folding)
    compact = compact_route(root, models.architecture)
    stored_models, stored = open_for_output(replace(recipe, model=compact.route))
    return ExportPlan("compact", reason, recipe, models, stored, stored_models, compact=compact)


def _check_places(route: Route, models: OpenModels) -> None:
    """Refuse to move blocks that compute by their place; a checkpoint gives every block a new one.

    Raises:
        UserError: naming the setting.
    """
    moved = any(hop.block != place for place, hop in enumerate(route.hops))
    config = models.config_json()
    if moved and (named := [name for name in BY_PLACE if config.get(name)]):
        raise UserError(
            f"the route moves blocks whose attention is scaled by their place ({named[0]}: true in config.json); no "
            "checkpoint of it would give the model that was scored"
        )


def check_form(recipe: Recipe, form: str) -> None:
    """Refuse a form that does not exist or that the recipe cannot have.

    Raises:
        UserError: with the forms there are.
    """
    if form not in FORMS:
        raise UserError(f"--form: expected {', '.join(FORMS)}, got {form!r}")
    if form in ("compact", "mergekit") and not isinstance(recipe.model, Route):
        raise UserError(f"--form {form}: only routes through blocks have it; leave it out, or take plain")
