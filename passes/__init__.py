"""The tables of passes and pipelines. A new pass is one file and one line here."""

from cnnc.passes.base import Context, Observer, Pass, PassRecord, Pipeline
from cnnc.passes.choose_kernels import ChooseKernels
from cnnc.passes.fold_batch_norm import FoldBatchNorm
from cnnc.passes.fold_constants import FoldConstants
from cnnc.passes.fold_pad import FoldPad
from cnnc.passes.fuse_elementwise import FuseElementwise
from cnnc.passes.fuse_epilogue import FuseEpilogue
from cnnc.passes.fuse_max_pool import FuseMaxPool
from cnnc.passes.fuse_prologue import FusePrologue
from cnnc.passes.group_images import GroupImages
from cnnc.passes.merge_branches import MergeBranches
from cnnc.passes.merge_siblings import MergeSiblings
from cnnc.passes.plan_memory import PlanMemory
from cnnc.passes.postpone_upsampling import PostponeUpsampling
from cnnc.passes.recognise_activations import RecogniseActivations
from cnnc.passes.recognise_norms import RecogniseNorms
from cnnc.passes.remove_dead import RemoveDead
from cnnc.passes.remove_identities import RemoveIdentities
from cnnc.passes.shuffle_channels import ShuffleChannels
from cnnc.passes.simplify_moves import SimplifyMoves
from cnnc.passes.slice_volumes import SliceVolumes
from cnnc.passes.split_transposed import SplitTransposed
from cnnc.passes.trim_windows import TrimWindows
from cnnc.passes.unpack_quantised import UnpackQuantised
from cnnc.passes.unstack_phases import UnstackPhases

PASSES: dict[str, type[Pass]] = {
    step.name: step
    for step in (
        RemoveDead,
        FoldConstants,
        UnpackQuantised,
        SimplifyMoves,
        ShuffleChannels,
        RemoveIdentities,
        RecogniseActivations,
        RecogniseNorms,
        MergeBranches,
        FoldBatchNorm,
        FoldPad,
        TrimWindows,
        PostponeUpsampling,
        FuseEpilogue,
        FuseElementwise,
        SliceVolumes,
        SplitTransposed,
        UnstackPhases,
        FuseMaxPool,
        MergeSiblings,
        FusePrologue,
        ChooseKernels,
        GroupImages,
        PlanMemory,
    )
}

# A pipeline may name other pipelines. Batch norm comes before padding: what stands between a pad
# and its convolution may go away.
PIPELINES: dict[str, str] = {
    "portable": "remove-dead,fold-constants,unpack-quantised,simplify-moves,shuffle-channels,"
    "remove-identities,recognise-activations,recognise-norms,merge-branches,fold-batch-norm,"
    "fold-pad,trim-windows,postpone-upsampling,fuse-epilogue,fuse-elementwise",
    "planned": "slice-volumes,split-transposed,unstack-phases,fuse-max-pool,merge-siblings,"
    "fuse-prologue,choose-kernels,group-images,plan-memory",
    "default": "portable,planned",
}

__all__ = [
    "PASSES",
    "PIPELINES",
    "Context",
    "Observer",
    "Pass",
    "PassRecord",
    "Pipeline",
]
