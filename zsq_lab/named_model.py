"""Which network, and which data to measure it on: the arguments that most commands share, and what they name."""
from pathlib import Path

from .arguments import Parser, WrongArgument, seed


def add_arguments(sub: Parser) -> None:
    sub.add_argument("--model", required=True, metavar="NAME",
                     help="resnet20, or with its data set cifar10/resnet20; see `models`")
    sub.add_argument("--profile", metavar="NAME",
                     help="cifar10 (scenes: camvid, bccd) or embedded; default: the first that is there")
    sub.add_argument("--data", type=Path, metavar="FOLDER", help="scenes: a folder laid out as CamVid or Pascal VOC")
    sub.add_argument("--seed", type=seed, default=0, help="decides everything that is random; default 0")


def named(args):
    """(name, data set, network) of the arguments; wrong names are wrong arguments."""
    from .checkpoints import full_name, load_model
    from .data import DataError
    from .imagenet_models import is_imagenet
    from .tasks import CLASSIFICATION, task_of
    if is_imagenet(args.model):
        raise WrongArgument(f"{args.model} can be quantized, evaluated and synthesized from; `{args.command}` is for "
                            "the networks of the lab")
    task = task_of(args.model)
    if args.data and task is CLASSIFICATION:
        raise WrongArgument("--data names a folder of scenes: use it with a segmenter or detector")
    profile = args.profile or (args.model.split("/")[0] if "/" in args.model else None)
    if args.data and profile == "embedded":
        raise WrongArgument("--data names a folder of real scenes: profile embedded draws its own")
    try:
        dataset = task.dataset(profile, args.data)
        name = full_name(args.model, dataset.name)
    except DataError:
        raise
    except ValueError as error:
        raise WrongArgument(error) from None
    home = name.split("/")[0]
    if task is not CLASSIFICATION and home != dataset.name:  # a classifier may be tried on other images
        raise WrongArgument(f"{name} knows the classes of {home}, not those of profile {dataset.name}: leave --profile out")
    if args.command == "train":
        return name, dataset, None
    return name, dataset, load_model(name)[0]


def named_classifier(args):
    """As `named`, for the commands that compare classes; ImageNet's images come from their folder."""
    from .tasks import CLASSIFICATION, task_of
    if args.model.startswith("imagenet/"):
        from .imagenet_command import load_with_images
        return load_with_images(args)
    if task_of(args.model) is not CLASSIFICATION:
        raise WrongArgument(f"{args.command} takes classifiers: {args.model} is none (from Python, zsq_lab.export "
                            "takes any network)")
    return named(args)
