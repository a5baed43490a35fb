"""Old module paths and public names; they work for one more release and warn with the new name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ROOT = __name__.rpartition(".")[0]

# old module → new module, both below tavq_plugin
MODULES: dict[str, str] = {
    "align": "losses",
    "align.clouds": "losses.point_clouds",
    "align.contrast": "losses.contrastive",
    "align.distribution": "losses.code_distribution",
    "align.envelope": "ot.value",
    "align.exact": "ot.emd",
    "align.graphed": "ot.cuda_graph",
    "align.loss": "losses.text_alignment",
    "align.newton": "ot.newton",
    "align.semidual": "ot.semidual",
    "align.shared": "losses.unique_codes",
    "align.softened": "losses.gradient_scale",
    "align.told": "losses.diagnostics",
    "align.transport": "ot.solve",
    "baselines": "methods",
    "baselines.cvq": "methods.cvq",
    "baselines.infonce": "methods.infonce",
    "baselines.l2_distil": "methods.l2_distil",
    "baselines.lgvq": "methods.lgvq",
    "baselines.method": "methods.base",
    "baselines.table": "methods.codebook_table",
    "baselines.tavq": "methods.tavq",
    "baselines.tavq_shuffled": "methods.tavq_shuffled",
    "baselines.tavq_uniform_plan": "methods.tavq_uniform_plan",
    "baselines.vqct": "methods.vqct",
    "baselines.vqgan": "methods.vqgan",
    "baselines.vqvae": "methods.vqvae",
    "baselines.word_graph": "methods.word_graph",
    "clock": "training.timer",
    "compare": "evaluation.compare",
    "console": "cli.console",
    "contract": "types",
    "convert": "io.convert_checkpoint",
    "data.layouts": "data.published",
    "data.leaks": "data.leakage",
    "data.pack": "data.folders",
    "data.pairs": "data.torch_datasets",
    "data.scene_text": "data.synthetic_text",
    "data.scenes": "data.synthetic_scenes",
    "demo": "cli.demo",
    "doctor": "cli.doctor",
    "dry_run": "hosts.find_taps",
    "environment": "distributed",
    "evaluate": "evaluation.text_targets",
    "foreign": "io.legacy_pickle",
    "hierarchy": "hosts.hierarchy",
    "host": "hosts.base",
    "measure": "evaluation.evaluate",
    "measured": "evaluation.results",
    "metrics": "evaluation.metrics",
    "metrics.alignment": "evaluation.probes.ridge",
    "metrics.bootstrap": "evaluation.metrics.statistics",
    "metrics.cards": "evaluation.metrics.cards",
    "metrics.codebook": "evaluation.metrics.codebook",
    "metrics.frechet": "evaluation.metrics.frechet",
    "metrics.frozen": "networks.frozen",
    "metrics.image": "evaluation.metrics.image",
    "metrics.judges": "evaluation.judges",
    "metrics.perceptual": "networks.lpips",
    "metrics.purity": "evaluation.metrics.purity",
    "metrics.relation": "evaluation.metrics.relation",
    "metrics.stability": "evaluation.metrics.stability",
    "metrics.transporting": "evaluation.metrics.transport_retrieval",
    "metrics.weights": "networks.weights",
    "metrics.words": "evaluation.metrics.words",
    "ownership": "io.ownership",
    "plan": "evaluation.plan",
    "registry": "hosts.registry",
    "report": "evaluation.report",
    "report.figures": "evaluation.report.figures",
    "report.pictures": "evaluation.report.pictures",
    "report.tables": "evaluation.report.comparison_table",
    "report.write": "evaluation.report.write",
    "revival": "training.codebook_restarts",
    "runs": "training.run_folder",
    "settings": "ot.solve",
    "storable": "io.storable",
    "summary": "evaluation.aggregate",
    "tap": "hosts.hooks",
    "target": "hosts.instantiate",
    "text.asking": "preprocessing.caption_batches",
    "text.caption": "preprocessing.caption",
    "text.captioned": "preprocessing.shard_captions",
    "text.captioners": "preprocessing.choose_captioner",
    "text.chunk": "text.phrase_chunker",
    "text.commands": "cli.text",
    "text.embed": "text.encoder",
    "text.prepare": "preprocessing.prepare_store",
    "text.quality": "preprocessing.caption_quality",
    "text.ray_workers": "preprocessing.ray_backend",
    "text.sentence_layout": "text.sentence_transformers_folder",
    "text.server": "preprocessing.server_captioner",
    "text.sharded": "text.sharded_store",
    "text.shards": "text.shard_file",
    "text.survey": "preprocessing.scan_records",
    "text.units": "text.splitter",
    "text.vlm": "preprocessing.local_captioner",
    "training.averaging": "training.ema",
    "training.codebook": "training.codebook_restarts",
    "training.command": "cli.train",
    "training.host": "training.build_host",
    "training.perceptual": "networks.perceptual_loss",
    "training.recipe_file": "training.recipe_yaml",
    "training.sharded": "distributed",
    "training.tree": "io.state_tree",
}

# "old module:old name" → "new module:new name", for names that went elsewhere than their module, or were renamed
NAMES: dict[str, str] = {
    "align.clouds:Clouds": "losses.point_clouds:PointClouds",
    "align.clouds:clouds_of": "losses.point_clouds:point_clouds_of",
    "align.clouds:padded": "losses.point_clouds:pad_levels",
    "align.distribution:collapse_repeats": "losses.unique_codes:merge_repeated_codes",
    "align.envelope:How": "ot.value:SolverSettings",
    "align.envelope:Value": "ot.value:EntropicValue",
    "align.semidual:Look": "ot.semidual:DualEvaluation",
    "align.semidual:best": "ot.semidual:best_evaluation",
    "align.semidual:conditional": "ot.semidual:conditional_plan",
    "align.semidual:look": "ot.semidual:evaluate_dual",
    "align.shared:Collapsed": "losses.unique_codes:UniqueCodes",
    "align.shared:collapse_repeats": "losses.unique_codes:merge_repeated_codes",
    "align.shared:on_shared": "losses.unique_codes:apply_once_per_code",
    "align.softened:softened": "losses.gradient_scale:scale_gradient",
    "align.told:Told": "losses.diagnostics:Diagnostics",
    "align.told:over_images": "losses.diagnostics:mean_over_images",
    "align:CodeDistribution": "losses:CodeDistribution",
    "align:GaussianCodes": "losses:GaussianCodes",
    "align:TextAlignment": "losses:TextAlignment",
    "align:Transport": "ot.solve:Transport",
    "align:coarse": "losses:coarse",
    "align:collapse_repeats": "losses.unique_codes:merge_repeated_codes",
    "align:solve": "ot.solve:solve",
    "align:stratified": "losses:stratified",
    "baselines.lgvq:masked": "methods.lgvq:draw_masked",
    "baselines.method:Corpus": "data.corpus:Corpus",
    "baselines.vqct:repeated": "methods.vqct_network:words_of_codes",
    "clock:Clock": "training.timer:StepTimer",
    "compare:judges_of": "evaluation.compare:load_judges",
    "compare:texts_in": "evaluation.compare:load_targets",
    "console:progress_of_runs": "cli.console:runs_progress",
    "console:told": "cli.console:report_errors",
    "contract:Adapter": "hosts.protocols:Adapter",
    "contract:Reading": "hosts.protocols:QuantizerAdapter",
    "data.corpus:corpus_in": "data.corpus:load_or_build_corpus",
    "data.images:to_float": "pixels:to_float",
    "data.layouts:celeba_hq": "data.celeba_hq:from_celeba_hq",
    "data.layouts:coco": "data.coco:from_coco",
    "data.layouts:cub": "data.cub:from_cub",
    "data.layouts:layout_of": "data.published:published_reader",
    "data.layouts:tars": "data.published:from_tar_folder",
    "data.leaks:Leaks": "data.leakage:Leakage",
    "data.leaks:find_leaks": "data.leakage:find_leakage",
    "data.pack:Pack": "data.folders:ImageTextFolder",
    "data.pairs:HubPairs": "data.torch_datasets:HubImageDataset",
    "data.pairs:Pairs": "data.torch_datasets:ImageDataset",
    "data.pairs:TarPairs": "data.torch_datasets:TarImageDataset",
    "data.records:from_folder": "data.folders:from_folder",
    "data.records:from_table": "data.tables:from_table",
    "data.records:hidden": "data.records:is_hidden",
    "data.records:inside": "data.records:path_inside",
    "data.records:joined": "data.records:captions_as_text",
    "data.records:lines_of": "data.records:read_lines",
    "data.records:read_records": "data.read:read_records",
    "data.records:record": "data.tables:record_from_row",
    "data.records:refuse": "data.records:raise_rejection",
    "data.scenes:Thing": "data.synthetic_scenes:SceneObject",
    "data.scenes:write_pack": "data.synthetic_scenes:write_scenes",
    "demo:table": "cli.demo_table:tables",
    "doctor:Report": "cli.doctor_report:Report",
    "doctor:lines": "cli.doctor_report:lines",
    "dry_run:Candidate": "hosts.find_taps:TapCandidate",
    "environment:at_rest": "side_effects:eval_without_trace",
    "environment:bare": "distributed:unwrap",
    "environment:keep_in_step": "distributed:mark_synchronized",
    "environment:own_randomness": "side_effects:isolated_random_state",
    "environment:refuse_out_of_step": "distributed:require_synchronized",
    "environment:whole": "distributed:gather_sharded",
    "foreign:Entries": "io.unpickled_objects:PickledMapping",
    "foreign:Record": "io.unpickled_objects:PickledObject",
    "foreign:allowed": "io.unpickled_objects:safe_globals",
    "hierarchy:nearest": "hosts.quantization:nearest",
    "hierarchy:pool": "hosts.quantization:pool",
    "hierarchy:with_gradient": "hosts.quantization:with_gradient",
    "evaluation.metrics.retrieval:average_precision_per_image": "evaluation.metrics.average_precision:"
    "average_precision_per_image",
    "evaluation.probes:PENALTY": "evaluation.probes.ridge:PENALTY",
    "evaluation.probes:Ridge": "evaluation.probes.ridge:Ridge",
    "evaluation.probes:fit_ridge": "evaluation.probes.ridge:fit_ridge",
    "host:Embedded": "hosts.quantizer_adapters:EmbeddingQuantizer",
    "host:Given": "hosts.quantizer_adapters:CustomQuantizer",
    "host:Host": "hosts.base:HostAdapter",
    "measure:AT": "evaluation.text_scores:RECALL_AT",
    "measure:Measured": "evaluation.results:RunResults",
    "measure:Measuring": "evaluation.settings:EvaluationSettings",
    "measure:SHOWN": "evaluation.evaluate:GRID_IMAGES",
    "measure:Texts": "evaluation.text_targets:TextTargets",
    "measure:measure": "evaluation.evaluate:evaluate_run",
    "measured:load_measured": "evaluation.results:load_results",
    "measured:save_measured": "evaluation.results:save_results",
    "metrics.alignment:found": "evaluation.metrics.retrieval:recall_per_query",
    "metrics.alignment:found_by": "evaluation.metrics.retrieval:recall_from_scores",
    "metrics.alignment:precision_shares": "evaluation.metrics.average_precision:average_precision_per_image",
    "metrics.alignment:recall": "evaluation.metrics.retrieval:recall",
    "metrics.codebook:over_processes": "evaluation.metrics.codebook:sum_over_processes",
    "metrics.codebook:use_of": "evaluation.metrics.codebook:codebook_use_from_counts",
    "metrics.frechet:frechet": "evaluation.metrics.frechet:frechet_distance",
    "metrics.frechet:kernel": "evaluation.metrics.frechet:kernel_distance",
    "metrics.frozen:Seen": "networks.frozen:JudgeOutput",
    "metrics.frozen:mobilenet_of": "networks.frozen:mobilenet_from_state",
    "metrics.image:to_uint8": "pixels:to_uint8",
    "metrics.judges:OF": "evaluation.judges:METRICS_BY_JUDGE",
    "metrics.weights:Weights": "networks.weights:WeightFile",
    "metrics.weights:refuse_other_weights": "networks.weights:require_known_hashes",
    "metrics.words:histograms": "evaluation.metrics.words:code_histograms",
    "metrics.words:presence": "evaluation.metrics.words:word_presence",
    "plan:QUICK_MEASURING": "evaluation.plan:QUICK_EVALUATION",
    "plan:divided": "evaluation.plan:split_overrides",
    "registry:reading_for": "hosts.registry:quantizer_adapter_for",
    "revival:KeptCodebook": "training.codebook_restarts:HostCodebookRestarts",
    "revival:Revival": "training.codebook_restarts:CodebookRestarts",
    "runs:in_hand": "cli.demo_folder:open_unfinished",
    "runs:load_metrics": "cli.demo_folder:load_metrics",
    "runs:load_run": "training.run_folder:load_weights",
    "runs:save_json": "io.atomic:save_json",
    "runs:save_run": "cli.demo_folder:save_run",
    "runs:writable": "io.atomic:writable",
    "settings:TransportSettings": "ot.solve:TransportSettings",
    "summary:told_by_codes": "evaluation.aggregate:most_informative_codes",
    "tap:Seen": "hosts.hooks:Capture",
    "tap:find": "hosts.hooks:find_module",
    "tap:install": "hosts.hooks:install_hooks",
    "tap:refuse_blind": "hosts.hooks:require_gradient",
    "target:load": "hosts.user_setup:load_setup",
    "text.asking:Asking": "preprocessing.caption_batches:CaptionRun",
    "text.asking:Captioned": "preprocessing.caption_batches:CaptionCounts",
    "text.asking:written": "preprocessing.captions_file:captions_in_file",
    "text.caption:REJECTED": "preprocessing.rejections:REJECTED",
    "text.caption:caption": "preprocessing.caption:caption_images",
    "text.caption:line_of": "preprocessing.rejections:rejection_line",
    "text.caption:lines_of": "preprocessing.caption:working_file",
    "text.caption:prompted": "preprocessing.caption:full_prompt",
    "text.caption:refuse_other_report": "preprocessing.rejections:refuse_foreign_list",
    "text.caption:report": "preprocessing.rejections:write_rejections",
    "text.caption:report_beside": "preprocessing.rejections:rejections_path",
    "text.captioned:Captions": "preprocessing.shard_captions:ShardCaptions",
    "text.captioned:reports": "preprocessing.shard_captions:all_rejections",
    "text.captioners:captioner_of": "preprocessing.choose_captioner:choose_captioner",
    "text.captioners:captions_of": "preprocessing.choose_captioner:choose_shard_captions",
    "text.chunk:encode": "text.phrase_chunker:code_letters",
    "text.commands:REJECTED": "cli.text:LEFT_OUT",
    "text.embed:MANY": "text.encoder:MANY_STRINGS",
    "text.embed:Pooling": "text.pretrained:Pooling",
    "text.embed:verify": "text.encoder:require_sha256",
    "text.manifest:NAME": "text.manifest:MANIFEST_FILE",
    "text.manifest:WHITENING": "text.manifest:WHITENING_FILE",
    "text.manifest:append": "text.manifest:append_stores",
    "text.manifest:finished": "text.manifest:finished_shard_paths",
    "text.manifest:merge": "text.manifest:merge_stores",
    "text.manifest:verify": "text.manifest:find_faults",
    "text.prepare:Prepared": "preprocessing.prepare_store:PrepareResult",
    "text.prepare:digest": "preprocessing.prepare_store:records_digest",
    "text.prepare:encoder_of": "preprocessing.prepare_store:encoder_loader",
    "text.prepare:part_of": "preprocessing.prepare_store:parse_part",
    "text.prepare:whole": "preprocessing.prepare_store:is_current",
    "text.pretrained:limit": "text.pretrained:token_limit",
    "text.pretrained:load": "text.pretrained:load_text_model",
    "text.pretrained:own_pooling": "text.pretrained:default_pooling",
    "text.quality:flaw": "preprocessing.caption_quality:caption_flaw",
    "text.ragged:Ragged": "text.ragged:RaggedRows",
    "text.ragged:gather": "text.ragged:padded_units",
    "text.ragged:records": "text.ragged:opaque_rows",
    "text.ray_workers:Worker": "preprocessing.ray_backend:ShardWorker",
    "text.sentence_layout:Layout": "text.sentence_transformers_folder:EncoderFolder",
    "text.sentence_layout:layout_of": "text.sentence_transformers_folder:read_encoder_folder",
    "text.shards:Strings": "text.shard_file:PackedStrings",
    "text.shards:hashed": "text.shard_file:id_hashes",
    "text.shards:intact": "text.shard_file:content_matches_hash",
    "text.shards:metadata": "text.shard_file:shard_metadata",
    "text.shards:read": "text.shard_file:read_shard",
    "text.shards:write": "text.shard_file:write_shard",
    "text.spacy_tags:load": "text.spacy_tags:load_spacy_model",
    "text.spacy_tags:name_of": "text.spacy_tags:model_name",
    "text.spacy_tags:tagged": "text.spacy_tags:tag_sentence",
    "text.survey:Survey": "preprocessing.scan_records:RecordScan",
    "text.survey:look": "preprocessing.scan_records:scan_records",
    "text.units:frequent": "text.splitter:frequent_units",
    "text.vlm:commit_of": "preprocessing.local_captioner:resolved_revision",
    "text:frequent": "text.splitter:frequent_units",
    "training.averaging:Average": "training.ema:WeightAverage",
    "training.codebook:KeptCodebook": "training.codebook_restarts:HostCodebookRestarts",
    "training.codebook:Revival": "training.codebook_restarts:CodebookRestarts",
    "training.host:picture": "training.build_host:find_reconstruction",
    "training.loop:Loop": "training.loop:TrainingLoop",
    "training.perceptual:FILES": "networks.lpips:BACKBONES",
    "training.sampler:Rows": "training.sampler:BatchSampler",
    "training.sampler:shares": "training.sampler:rows_of_rank",
    "training.sharded:dealt": "distributed:shard_like",
    "training.sharded:gathered": "distributed:gather_state",
    "training.sharded:load_module": "distributed:load_module",
    "training.sharded:load_optimizer": "distributed:load_optimizer",
    "training.trainer:FREE": "training.run_folder:BOOKKEEPING",
    "training.trainer:Fitted": "training.trainer:TrainedRun",
    "training.trainer:refuse_other_run": "training.run_folder:refuse_other_settings",
    "training:Fitted": "training.trainer:TrainedRun",
}


def new_place(module: str, name: str) -> tuple[str, str] | None:
    """The new module and name of what was called `name` in `module`; None if it was not moved.

    >>> new_place("align", "solve")
    ('ot.solve', 'solve')
    """
    if f"{module}:{name}" in NAMES:
        target, _, new_name = NAMES[f"{module}:{name}"].partition(":")
        return target, new_name
    return (MODULES[module], name) if module in MODULES else None


def old_names(module: str) -> Callable[[str], Any]:
    """A module's `__getattr__` that finds its moved names, with a DeprecationWarning that names the new place."""
    old = module.removeprefix(f"{_ROOT}.")

    def find(name: str) -> Any:
        place = None if name.startswith("__") else new_place(old, name)
        if place is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        target, new_name = f"{_ROOT}.{place[0]}", place[1]
        found = getattr(import_module(target), new_name)
        warnings.warn(
            f"{module}.{name} is now {target}.{new_name}; the next release removes the old name",
            DeprecationWarning,
            stacklevel=2,
        )
        return found

    return find


def renamed_arguments(**new_names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the function still takes arguments by old names, with a DeprecationWarning; give old="new".

    >>> @renamed_arguments(beside="detach_added_levels")
    ... def wrap(*, detach_added_levels=False):
    ...     return detach_added_levels
    >>> with warnings.catch_warnings(record=True):
    ...     wrap(beside=True)
    True
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in new_names.keys() & kwargs.keys():
                new = new_names[old]
                if new in kwargs:
                    raise TypeError(f"{old} is the old name of {new}, and both were given: give {new} alone")
                warnings.warn(
                    f"{old}= is now {new}=; the next release removes the old name", DeprecationWarning, stacklevel=2
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def current_settings(settings: Any) -> Any:
    """Settings that an earlier release wrote, by today's names; settings without old names come back equal.

    >>> current_settings({"level_weight": 1.0, "host": {"wrap": {"beside": True}}, "options": {"level_weight": [2, 1]}})
    {'codebook_loss_weight': 1.0, 'host': {'wrap': {'detach_added_levels': True}}, 'options': {'level_weights': [2, 1]}}
    """
    if isinstance(settings, Mapping):
        return {_current_key(key, value): _current_value(key, value) for key, value in settings.items()}
    return [current_settings(value) for value in settings] if isinstance(settings, list) else settings


def written_settings(settings: Any) -> Any:
    """Settings that a run of an earlier release wrote, as today's settings of the same run.

    Unlike a recipe of the user's own, they mean what the release that wrote them did: a run of `tavq` or of one of its
    controls that names no balance was a weighted sum, and one of `cvq` that names no anchor drew its anchors.

    >>> written_settings({"method": "tavq", "options": {"level_weight": [2, 1]}})
    {'method': 'tavq', 'options': {'level_weights': [2, 1], 'balance': None}}
    >>> written_settings({"method": "vqgan", "options": {}})
    {'method': 'vqgan', 'options': {}}
    """
    return _with_former_defaults(current_settings(settings))


def _with_former_defaults(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_with_former_defaults(value) for value in settings]
    if not isinstance(settings, Mapping):
        return settings
    settings = {key: _with_former_defaults(value) for key, value in settings.items()}
    options, former = settings.get("options") or {}, _FORMER_DEFAULTS.get(str(settings.get("method")), {})
    if isinstance(options, dict) and former and next(iter(former)) not in options:
        settings["options"] = {**options, **{name: value for name, value in former.items() if name not in options}}
    return settings


def _current_key(key: Any, value: Any) -> Any:
    if key == "level_weight":  # this name had two meanings
        return "level_weights" if isinstance(value, Sequence) else "codebook_loss_weight"
    return _SETTINGS.get(key, key)


def _current_value(key: Any, value: Any) -> Any:
    if key == "run" and value == "baseline":  # the demo's run without alignment
        return "lambda-0"
    return current_settings(value)


# method → options of an earlier release that today's default differs from; a run that lacks the first one is of then
_FORMER_DEFAULTS: dict[str, dict[str, Any]] = {
    **{name: {"balance": None} for name in ("tavq", "tavq-shuffled", "tavq-uniform-plan", "l2-distil", "infonce")},
    "cvq": {"anchor": "probrandom", "metric": "l2", "contrast": 1.0, "restarts": True},
    "vqct": {"lemmas": False, "fitted": False},
}
_SETTINGS = {"beside": "detach_added_levels", "measuring": "evaluation", "transported": "transport_images"}


class _OldModules(MetaPathFinder, Loader):
    """Finds old module paths after every other finder has failed; the modules it creates hold no code."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        old = name.removeprefix(f"{_ROOT}.")
        known = old != name and any(key == old or key.startswith(f"{old}.") for key in MODULES)
        return ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = old_names(module.__name__)  # type: ignore[method-assign]


def install() -> None:
    """Let `import` find the old paths; called when tavq_plugin is imported."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())
