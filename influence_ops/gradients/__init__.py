"""Per-example gradients as factors, layer by layer."""

from influence_ops.gradients.blocks import Block as Block
from influence_ops.gradients.blocks import BlockLayout as BlockLayout
from influence_ops.gradients.blocks import Factored as Factored
from influence_ops.gradients.blocks import Gradients as Gradients
from influence_ops.gradients.blocks import Layout as Layout
from influence_ops.gradients.blocks import Materialised as Materialised
from influence_ops.gradients.blocks import OneHot as OneHot
from influence_ops.gradients.blocks import Piece as Piece
