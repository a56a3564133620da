"""`saukit eval`: many-, medium- and few-shot accuracy of a run."""

from saukit.cli.options import Call, stage_command
from saukit.evaluation.config import EvalConfig


@stage_command(EvalConfig, every_process=True)
def command(call: Call, config: EvalConfig) -> None:
    """Evaluate a run on the whole test set, per class and shot group.

    Examples:

      saukit eval --split few

      saukit eval --run ce --json
    """
    from saukit.cli.show import show_evaluation
    from saukit.evaluation.evaluate import choose_run, evaluate
    from saukit.training.distributed import joined

    if call.dry_run:
        name = choose_run(call.workspace, config.run)
        facts = {"run": name, "folder": str(call.workspace.run(name))}
        call.show_plan("eval", config, facts, document=facts)
        return
    with joined(call.device):
        result = evaluate(config, call.workspace, device=call.device, force=call.force, reporter=call.reporter)
    show_evaluation(result, config.split, call.reporter)
