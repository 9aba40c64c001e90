"""Per-example gradients as factors, layer by layer."""

from beam_influence.influence_ops.model.gradients.blocks import Block as Block
from beam_influence.influence_ops.model.gradients.blocks import BlockLayout as BlockLayout
from beam_influence.influence_ops.model.gradients.blocks import Factored as Factored
from beam_influence.influence_ops.model.gradients.blocks import Gradients as Gradients
from beam_influence.influence_ops.model.gradients.blocks import Layout as Layout
from beam_influence.influence_ops.model.gradients.blocks import Materialised as Materialised
from beam_influence.influence_ops.model.gradients.blocks import OneHot as OneHot
from beam_influence.influence_ops.model.gradients.blocks import Piece as Piece
