"""Which handler serves which operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from executor.protocols.call import Call
from executor.protocols.handlers import adding, building, maintenance, options, queries, roots
from executor.protocols.worker_protocol import Op

Handler = Callable[[Call], None]

HANDLERS: Mapping[Op, Handler] = {
    Op.IS_VALID_PATH: queries.is_valid_path,
    Op.QUERY_VALID_PATHS: queries.query_valid_paths,
    Op.QUERY_REFERRERS: queries.query_referrers,
    Op.QUERY_VALID_DERIVERS: queries.query_valid_derivers,
    Op.QUERY_DERIVER: queries.query_deriver,
    Op.QUERY_DERIVATION_OUTPUTS: queries.query_derivation_outputs,
    Op.QUERY_DERIVATION_OUTPUT_NAMES: queries.query_derivation_output_names,
    Op.QUERY_DERIVATION_OUTPUT_MAP: queries.query_derivation_output_map,
    Op.QUERY_PATH_FROM_HASH_PART: queries.query_path_from_hash_part,
    Op.QUERY_ALL_VALID_PATHS: queries.query_all_valid_paths,
    Op.QUERY_PATH_INFO: queries.query_path_info,
    Op.NAR_FROM_PATH: queries.nar_from_path,
    Op.QUERY_REALISATION: queries.query_realisation,
    Op.QUERY_SUBSTITUTABLE_PATHS: queries.query_substitutable_paths,
    Op.QUERY_SUBSTITUTABLE_PATH_INFO: queries.query_substitutable_path_info,
    Op.QUERY_SUBSTITUTABLE_PATH_INFOS: queries.query_substitutable_path_infos,
    Op.QUERY_MISSING: building.query_missing,
    Op.BUILD_PATHS: building.build_paths,
    Op.BUILD_PATHS_WITH_RESULTS: building.build_paths_with_results,
    Op.BUILD_DERIVATION: building.build_derivation,
    Op.ADD_TO_STORE: adding.add_to_store,
    Op.ADD_TEXT_TO_STORE: adding.add_text_to_store,
    Op.ADD_TO_STORE_NAR: adding.add_to_store_nar,
    Op.ADD_MULTIPLE_TO_STORE: adding.add_multiple_to_store,
    Op.ADD_SIGNATURES: adding.add_signatures,
    Op.REGISTER_DRV_OUTPUT: adding.register_drv_output,
    Op.ADD_BUILD_LOG: adding.add_build_log,
    Op.COLLECT_GARBAGE: maintenance.collect_garbage,
    Op.OPTIMISE_STORE: maintenance.optimise_store,
    Op.VERIFY_STORE: maintenance.verify_store,
    Op.SET_OPTIONS: options.set_options,
    Op.SYNC_WITH_GC: options.sync_with_gc,
    Op.ENSURE_PATH: roots.ensure_path,
    Op.ADD_TEMP_ROOT: roots.add_temp_root,
    Op.ADD_INDIRECT_ROOT: roots.add_indirect_root,
    Op.ADD_PERM_ROOT: roots.add_perm_root,
    Op.FIND_ROOTS: roots.find_roots,
}
