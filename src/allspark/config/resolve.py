"""What follows from a configuration that leaves something open. Torch-free."""

from __future__ import annotations

from allspark.batch import Views
from allspark.config.methods import joint_methods
from allspark.config.schema import Config, DataConfig, ModelConfig, OptimConfig
from allspark.errors import ConfigError


def network_config(config: Config) -> ModelConfig:
    """The network, with ``model.bottleneck`` written out: as asked for, else as the method has it.

    Raises:
        ConfigError: the method cannot use the bottleneck that is asked for.
    """
    method, wanted = config.method, config.model.bottleneck
    bottleneck = method.bottleneck if wanted is None else wanted
    if bottleneck == "allspark" and not method.joint:
        raise ConfigError(
            f"model.bottleneck: allspark needs labelled and unlabelled images in one pass, which method {method.name} "
            f"does not have; set it to none, or method.name to one of {', '.join(joint_methods())}"
        )
    if bottleneck != method.bottleneck == "allspark":
        raise ConfigError(
            f"model.bottleneck: method {method.name} is its bottleneck; leave it null, or set "
            "method.name=pseudo-label, which is the same without"
        )
    return config.model.model_copy(update={"bottleneck": bottleneck})


def require_memory(model: ModelConfig) -> None:
    """Refuse to predict from a semantic memory that is not there.

    Args:
        model: with its bottleneck written out.

    Raises:
        ConfigError: what is missing.
    """
    if model.bottleneck == "allspark" and model.bottleneck_memory:
        return
    missing = "model.bottleneck_memory is false" if model.bottleneck == "allspark" else "there is no bottleneck"
    raise ConfigError(f"eval.memory: the network has no semantic memory to predict from ({missing}); set it to false")


def images_per_update(data: DataConfig, accumulate: int, world: int, views: Views) -> int:
    """Crops of one weight update, of all micro-batches and processes.

    Args:
        data: batch sizes.
        accumulate: micro-batches an update.
        world: number of processes.
        views: what the method asks for.
    """
    labeled = data.batch_labeled if views.labeled is not None else 0
    unlabeled = data.batch_unlabeled * (views.unlabeled + views.partner + views.pseudo)
    return (labeled + unlabeled) * accumulate * world


def scaled_lr(optim: OptimConfig, images: int) -> OptimConfig:
    """The learning rate for an update of so many images, and that number as the one it is meant for."""
    if optim.lr_batch in (None, images):
        return optim
    return optim.model_copy(update={"lr": optim.lr * images / optim.lr_batch, "lr_batch": images})
