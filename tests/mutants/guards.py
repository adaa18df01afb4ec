"""Mutants: code that the guarantees depend on, its text without the guard, and the tests that must then fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """A guard in the code.

    Attributes:
        name: of the mutant.
        path: of the file.
        text: occurs once in the file.
        without: the same text without the guard.
        tests: arguments of pytest; one of the tests must fail without the guard.
    """

    name: str
    path: str
    text: str
    without: str
    tests: tuple[str, ...]


GUARDS = (
    Guard(
        "a deleted checkpoint is not good",
        "jobs/checkpoints.py",
        "Checkpoint.kind == TRAINING, is_kept, ",
        "Checkpoint.kind == TRAINING, ",
        ("tests/jobs/test_checkpoints.py::test_only_an_intact_training_checkpoint_is_good[sqlite-deleted]",),
    ),
    Guard(
        "a damaged checkpoint is not good",
        "jobs/checkpoints.py",
        "is_kept, is_undamaged, Checkpoint.missing_at",
        "is_kept, Checkpoint.missing_at",
        # Without the guard the worker reads the same file for ever.
        ("tests/worker/test_run_file.py::test_a_marked_checkpoint_is_never_read_again", "--timeout=20"),
    ),
    Guard(
        "a missing checkpoint is not good",
        "jobs/checkpoints.py",
        "is_undamaged, Checkpoint.missing_at.is_(None))",
        "is_undamaged)",
        ("tests/jobs/test_checkpoints.py::test_only_an_intact_training_checkpoint_is_good[sqlite-missing]",),
    ),
    Guard(
        "a file of embeddings is not a good checkpoint",
        "jobs/checkpoints.py",
        "return and_(Checkpoint.kind == TRAINING, ",
        "return and_(",
        ("tests/jobs/test_checkpoints.py::test_only_an_intact_training_checkpoint_is_good[sqlite-embeddings]",),
    ),
    Guard(
        "retention keeps a checkpoint that a job needs",
        "jobs/checkpoints.py",
        " - _needed(session, surplus)",
        "",
        ("tests/jobs/test_checkpoints.py::test_retention_keeps_a_needed_checkpoint[sqlite-evaluation]",),
    ),
    Guard(
        "files of an open attempt are not orphans",
        "jobs/checkpoints.py",
        "ended = {AttemptRef(job_id, number, token).folder: at is not None for",
        "ended = {AttemptRef(job_id, number, token).folder: True for",
        ("tests/jobs/test_checkpoints.py::test_a_file_that_no_row_can_claim_is_an_orphan[sqlite]",),
    ),
    Guard(
        "a registered artifact is not an orphan",
        "jobs/checkpoints.py",
        "session.execute(checkpoints.union_all(artifacts))",
        "session.execute(checkpoints)",
        ("tests/worker/test_garbage.py::test_an_artifact_stays_until_another_one_of_its_name_replaces_it",),
    ),
    Guard(
        "the order of keys does not change a digest",
        "wcl_core/digests.py",
        "sort_keys=True, ",
        "",
        ("tests/wcl_core/test_digests.py::test_the_order_of_keys_does_not_change_the_digest",),
    ),
    Guard(
        "a write names the token of its attempt",
        "jobs/attempts.py",
        ", Attempt.token == self.token)",
        ")",
        ("tests/jobs/test_transitions.py::test_an_unknown_attempt_writes_nothing[sqlite]",),
    ),
    Guard(
        "files in the storage name the token of their attempt",
        "jobs/attempts.py",
        ' + (f"-{self.token}" if self.token else "")',
        "",
        (
            "tests/worker/test_attempt_folder.py::test_attempts_of_one_number_have_tokens_folders_and_marks_of_their_own",
        ),
    ),
    Guard(
        "a copied folder is not recovered",
        "worker/recovery.py",
        "is_original = run.place is not None and run.place.is_same(place_of(folder))",
        "is_original = run.place is not None",
        ("tests/worker/test_garbage.py::test_a_copy_of_a_data_folder_recovers_nothing_of_its_original[sqlite]",),
    ),
    Guard(
        "the processes of an attempt name the place of its folder",
        "worker/attempt_folder.py",
        'return f"{attempt.folder}@{place.device}:{place.inode}"',
        "return attempt.folder",
        ("tests/worker/test_attempt_folder.py::test_a_copy_is_another_place_and_a_moved_folder_is_the_same",),
    ),
    Guard(
        "one supervisor holds an attempt's folder",
        "worker/attempt_folder.py",
        "            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        ("tests/worker/test_attempt_folder.py::test_one_supervisor_holds_a_folder",),
    ),
    Guard(
        "a spool is delivered again after a restored backup",
        "worker/delivery.py",
        "                self._start_over()\n            return",
        "                pass\n            return",
        (
            "tests/worker/test_delivery.py"
            "::test_a_backup_that_was_restored_within_an_attempt_is_completed_from_the_spool[sqlite]",
            "--timeout=30",
        ),
    ),
    Guard(
        "the queue follows the database's sequence",
        "jobs/transitions/claims.py",
        ".order_by(Job.priority.desc(), Job.queue_place)",
        ".order_by(Job.priority.desc(), Job.id)",
        (
            "tests/jobs/test_transitions.py::test_jobs_of_equal_priority_are_claimed_in_the_order_of_the_database[sqlite]",
        ),
    ),
    Guard(
        "a backoff ends when the clock has gone back",
        "jobs/eligibility.py",
        "Job.not_before <= now_ms(), has_gone_back)",
        "Job.not_before <= now_ms())",
        ("tests/jobs/test_eligibility.py::test_a_backoff_is_over_when_the_clock_has_gone_back[sqlite-86400000-True]",),
    ),
    Guard(
        "the time limit counts the time of the workers' clocks",
        "jobs/transitions/outcomes.py",
        "func.sum(func.coalesce(Attempt.ran_ms, by_times))",
        "func.sum(by_times)",
        ("tests/jobs/test_limits.py::test_the_time_limit_counts_the_time_of_the_workers_clock[sqlite]",),
    ),
    Guard(
        "preemption does not compare times of starts",
        "jobs/preemption.py",
        "pair[1].ran_ms or 0",
        "-pair[1].started_at",
        (
            "tests/jobs/test_preemption.py"
            "::test_of_the_lowest_priority_the_attempt_that_ran_shortest_is_preempted[sqlite]",
        ),
    ),
    Guard(
        "every folder above a stored file is synced",
        "jobs/storage.py",
        "            sync_folder(folder)\n",
        "            pass\n",
        ("tests/jobs/test_storage.py::test_every_folder_above_a_stored_file_is_synced_after_its_rename[False]",),
    ),
    Guard(
        "a copied database does not share the storage of its original",
        "jobs/storage_id.py",
        "    if owner is not None and _is_there(owner):\n",
        "    if False:\n",
        ("tests/jobs/test_storage_id.py::test_a_copied_database_does_not_share_the_storage_of_its_original",),
    ),
    Guard(
        "a copied storage belongs to its own database",
        "jobs/storage.py",
        "return place if inode == str(self.root.stat().st_ino) else None",
        "return place",
        ("tests/jobs/test_storage_id.py::test_a_copied_or_moved_data_folder_keeps_its_storage",),
    ),
    Guard(
        "a pinned checkpoint does not count as kept",
        "jobs/checkpoints.py",
        "for checkpoint in good(session, job_id) if not checkpoint.pinned]",
        "for checkpoint in good(session, job_id)]",
        ("tests/jobs/test_checkpoints.py::test_a_pinned_checkpoint_does_not_count_as_one_of_the_latest[sqlite]",),
    ),
    Guard(
        "a job is not due before its backoff is over",
        "jobs/eligibility.py",
        "return and_(Job.status == Status.QUEUED, _is_backoff_over())",
        "return and_(Job.status == Status.QUEUED)",
        ("tests/jobs/test_eligibility.py::test_a_queued_job_is_due_once_its_backoff_is_over",),
    ),
    Guard(
        "only a queued job is due",
        "jobs/eligibility.py",
        "return and_(Job.status == Status.QUEUED, _is_backoff_over())",
        "return and_(_is_backoff_over())",
        ("tests/jobs/test_eligibility.py::test_a_queued_job_is_due_once_its_backoff_is_over",),
    ),
    Guard(
        "only a job that a fault of a worker paused continues by itself",
        "jobs/eligibility.py",
        "Job.status == Status.PAUSED, Job.status_reason.in_(HELD), _is_backoff_over()",
        "Job.status == Status.PAUSED, _is_backoff_over()",
        ("tests/jobs/test_held.py::test_a_job_that_a_user_has_paused_stays_paused[sqlite]",),
    ),
    Guard(
        "a job that a fault of a worker paused waits for its backoff",
        "jobs/eligibility.py",
        "Job.status_reason.in_(HELD), _is_backoff_over()",
        "Job.status_reason.in_(HELD)",
        ("tests/jobs/test_held.py::test_each_full_disk_makes_the_job_wait_longer[sqlite]",),
    ),
    Guard(
        "a job that a fault of a worker paused needs a worker that takes jobs",
        "jobs/transitions/observers.py",
        "select(Worker).where(takes_jobs()).order_by",
        "select(Worker).order_by",
        ("tests/jobs/test_held.py::test_a_held_job_is_resumed_once_a_worker_that_fits_takes_jobs[sqlite-disk_full]",),
    ),
    Guard(
        "a pause that a user requested outlasts a fault of the worker",
        "jobs/transitions/outcomes.py",
        "elif reason in HELD and job.pause_requested_at is None:",
        "elif reason in HELD:",
        ("tests/jobs/test_held.py::test_a_job_that_a_user_has_paused_stays_paused[sqlite]",),
    ),
    Guard(
        "the checkpoint that a paused job needs stays",
        "jobs/checkpoints.py",
        "is_spare = point is not None and point.id != checkpoint_id",
        "is_spare = point is not None",
        ("tests/jobs/test_held.py::test_of_a_paused_job_all_checkpoints_but_the_one_it_needs_may_be_deleted[sqlite]",),
    ),
    Guard(
        "a worker pauses after a fault of its own",
        "worker/room.py",
        '        return Unable(reason, f"{_PAUSED[reason]}; it tries again after a pause")',
        "        return None",
        ("tests/worker/test_room.py::test_after_a_full_disk_it_waits_longer_each_time_or_for_room",),
    ),
    Guard(
        "wcl up restarts a worker that a signal has stopped",
        "wcl_client/processes.py",
        "self.is_over = code in (DRAINED_EXIT, os.EX_CONFIG)",
        "self.is_over = code in (0, DRAINED_EXIT, os.EX_CONFIG)",
        ("tests/wcl_client/test_up.py::test_a_drained_worker_is_not_restarted_and_a_stopped_or_failed_one_is",),
    ),
    Guard(
        "a fault that lasts is logged once",
        "jobs/fault_log.py",
        "        if cause == self._cause:\n            return\n",
        "",
        ("tests/jobs/test_fault_log.py::test_a_failure_that_repeats_is_logged_once_and_its_end_too",),
    ),
    Guard(
        "a worker claims only versions of a dataset that it has",
        "jobs/eligibility.py",
        "        tuple_(Job.dataset_name, Job.dataset_digest).in_(list(worker.datasets.items())),\n",
        "",
        ("tests/jobs/test_eligibility.py::test_the_query_and_the_function_agree_on_which_worker_fits",),
    ),
    Guard(
        "a draining worker takes no jobs",
        "jobs/eligibility.py",
        "Worker.drain_requested_at.is_(None), Worker.unable",
        "Worker.unable",
        ("tests/jobs/test_eligibility.py::test_a_live_worker_takes_jobs_unless_it_drains",),
    ),
    Guard(
        "a dependency needs a good checkpoint",
        "jobs/eligibility.py",
        "exists().where(Checkpoint.job_id == needed.id, is_good())",
        "exists().where(Checkpoint.job_id == needed.id)",
        ("tests/jobs/test_eligibility.py::test_a_damaged_checkpoint_meets_no_dependency",),
    ),
    Guard(
        "a lost worker is not live",
        "jobs/models.py",
        "return cls.state.in_(LIVE_STATES)",
        'return cls.state != "stopped"',
        ("tests/jobs/test_eligibility.py::test_a_live_worker_takes_jobs_unless_it_drains",),
    ),
    Guard(
        "a write before an attempt is declared lost",
        "jobs/reconciler.py",
        "        self._prove_writable(attempts, heartbeats)\n",
        "",
        ("tests/jobs/test_reconciler.py::test_no_attempt_is_lost_while_the_database_is_read_only[sqlite]",),
    ),
    Guard(
        "a stored file has its registered digest",
        "jobs/storage.py",
        "        if (digest_of or sha256_of)(path) != sha256:\n",
        "        if False:\n",
        ("tests/worker/test_run_file.py::test_every_damage_is_detected_and_the_older_checkpoint_is_used[flip]",),
    ),
    Guard(
        "a stored file has its registered size and digest",
        "jobs/storage.py",
        "        compare_size(path.stat().st_size, size)\n",
        "        if path.stat().st_size == 0:\n            return path\n",
        ("tests/worker/test_run_file.py::test_every_damage_is_detected_and_the_older_checkpoint_is_used[truncate]",),
    ),
    Guard(
        "a file that was touched is read again",
        "jobs/checked_files.py",
        "while (stamp := Stamp.of(file)) != self._stamps.get((path, sha256)):",
        "while (stamp := Stamp.of(file)) and (path, sha256) not in self._stamps:",
        ("tests/jobs/test_checked_files.py::test_a_file_that_was_touched_is_read_again",),
    ),
    Guard(
        "a file that may change within one tick is read again",
        "jobs/checked_files.py",
        "if max(stamp.mtime_ns, stamp.ctime_ns) + _REST_NS < started_ns:",
        "if True:",
        ("tests/jobs/test_checked_files.py::test_a_file_of_this_moment_is_read_again",),
    ),
    Guard(
        "a file is read before its first byte leaves",
        "jobs/checked_files.py",
        'if hashlib.file_digest(file, "sha256").hexdigest() != sha256:',
        "if False:",
        (
            "tests/api/rest/test_stored_files.py::test_a_flipped_bit_is_answered_with_410_marked_and_reported[sqlite-native]",
        ),
    ),
    Guard(
        "a download breaks off when its file changes",
        "api/http/files.py",
        "if not chunk or _touched(file) != before:",
        "if not chunk:",
        ("tests/api/rest/test_stored_files.py::test_a_file_that_changes_under_a_download_breaks_it_off",),
    ),
    Guard(
        "an export has the bytes that were written",
        "api/rest/exports.py",
        "(_EXPORTED.open(out, digest, int(size)), digest)",
        '(out.open("rb"), digest)',
        ("tests/api/rest/test_stored_files.py::test_an_export_with_other_bytes_is_made_again[wrong bytes]",),
    ),
    Guard(
        "an export of an older version is made again",
        "api/rest/exports.py",
        "if version == _VERSION else None",
        "if version else None",
        ("tests/api/rest/test_stored_files.py::test_an_export_of_an_older_version_is_made_again",),
    ),
    Guard(
        "tensors follow one another",
        "wcl_core/export.py",
        '        if entry["data_offsets"][0] != end:\n',
        "        if False:\n",
        ("tests/wcl_core/test_export.py::test_a_tensor_over_the_bytes_of_another_one_is_refused",),
    ),
    Guard(
        "labels of a packed dataset are checked before they are counted",
        "wcl_core/data/packed.py",
        "    _check_blocks(name, path, header, _blocks_of_labels(header))\n    _check_labels(",
        "    _check_labels(",
        ("tests/wcl_core/data/test_packed.py::test_a_description_is_made_of_checked_bytes[labels]",),
    ),
    Guard(
        "images of a packed dataset are checked before they are shown",
        "wcl_core/data/packed.py",
        '    _check_blocks(name, path, header, _blocks_of_images(header, "train", shown))\n',
        "",
        ("tests/wcl_core/data/test_packed.py::test_a_description_is_made_of_checked_bytes[sample]",),
    ),
    Guard(
        "a cached description has the bytes that were written",
        "wcl_core/data/described.py",
        ' or kept.pop("sha256") != digest_of(kept)',
        ' or not kept.pop("sha256")',
        ("tests/wcl_core/data/test_described.py::test_a_wrong_bit_in_the_cache_is_noticed",),
    ),
    Guard(
        "a label list has the announced content",
        "wcl_core/data/label_lists.py",
        "if digests.get(name) not in (None, index_digest(index)):",
        "if False:",
        (
            "tests/wcl_core/data/test_label_lists.py::"
            "test_a_list_that_changed_since_it_was_announced_fails_the_runs_that_use_it[True]",
        ),
    ),
    Guard(
        "a storage has the id of its database",
        "jobs/storage.py",
        "if self.id is None or (marker := self.marker()) == self.id:",
        "if self.id is None or (marker := self.marker()) != '':",
        ("tests/jobs/test_storage_id.py::test_nothing_is_done_in_another_folder[sqlite]",),
    ),
    Guard(
        "a new database takes no files of another one",
        "jobs/storage_id.py",
        "        _refuse_strangers(session, storage, marker)\n",
        "",
        ("tests/jobs/test_storage_id.py::test_a_new_database_takes_no_files_of_another_one[sqlite]",),
    ),
    Guard(
        "all files of a job that are missing at once mark nothing",
        "jobs/damage.py",
        "    if isinstance(flaw, Missing):\n        check_not_lost(database, storage, row.job_id)\n",
        "",
        ("tests/jobs/test_damage.py::test_all_files_missing_at_once_mark_nothing[sqlite]",),
    ),
    Guard(
        "an attempt marks nothing when all files of its job are missing",
        "worker/run_file.py",
        "        damage.check_not_lost(database, storage, bad.job_id)\n",
        "        pass\n",
        ("tests/worker/test_run_file.py::test_all_files_missing_at_once_are_a_storage_that_is_not_there",),
    ),
    Guard(
        "an unable worker claims no job",
        "worker/slot.py",
        "return self.ability.check() is None",
        "return True",
        ("tests/worker/test_storage.py::test_a_worker_with_another_folder_takes_nothing_and_says_so[sqlite]",),
    ),
    Guard(
        "an unable worker takes no jobs",
        "jobs/eligibility.py",
        ", Worker.unable.is_(None))",
        ")",
        ("tests/jobs/test_eligibility.py::test_an_unable_worker_takes_no_jobs[sqlite]",),
    ),
    Guard(
        "no sweep ranks by a value selected on the test split",
        "jobs/sweeps/metric.py",
        " if not measure.is_selected_on_test)",
        ")",
        ("tests/jobs/test_sweep_space.py::test_no_metric_was_selected_on_the_test_split",),
    ),
    Guard(
        "an ended sweep starts no trial",
        "jobs/sweeps/progress.py",
        "running = select(Sweep).where(Sweep.id == sweep_id, Sweep.status == Status.RUNNING)",
        "running = select(Sweep).where(Sweep.id == sweep_id)",
        ("tests/jobs/test_sweeps.py::test_cancel_ends_the_sweep_and_its_jobs",),
    ),
    Guard(
        "a rung waits for its evaluations",
        "jobs/sweeps/trial_results.py",
        "if self.status == Status.SUCCEEDED and self.evaluation_status not in (*TERMINAL, None):",
        "if False:",
        ("tests/jobs/test_sweeps.py::test_a_rung_waits_for_its_last_evaluation",),
    ),
    Guard(
        "a superseded attempt writes nothing",
        "jobs/transitions/fence.py",
        "        .where(attempt.is_row(), Attempt.ended_at.is_(None))\n        .values(renewals=Attempt.renewals + 1",
        "        .where(attempt.is_row())\n        .values(renewals=Attempt.renewals + 1",
        ("tests/jobs/test_fence.py::test_a_thousand_writes_of_superseded_attempts_change_nothing[sqlite]",),
    ),
    Guard(
        "a repeated delivery is stored once",
        "jobs/transitions/fence.py",
        "statement.where(Attempt.delivered_seq == first - 1).values(",
        "statement.values(",
        ("tests/jobs/test_transitions.py::test_a_delivery_can_be_repeated_when_its_response_was_lost[sqlite]",),
    ),
    Guard(
        "a status changes only from an expected one",
        "jobs/transitions/status_change.py",
        "        .where(Job.id == job_id, Job.status.in_(before))\n",
        "        .where(Job.id == job_id)\n",
        ("tests/jobs/test_transitions.py::test_a_request_changes_the_status_or_is_refused",),
    ),
    Guard(
        "weak labels of an attempt end at the resume step of the next one",
        "jobs/weak_labels.py",
        "all(each.step <= start for number, start in starts if number > each.attempt)",
        "True",
        ("tests/jobs/test_weak_labels.py::test_reports_beyond_the_step_of_a_resume_are_left_out",),
    ),
    Guard(
        "importing the specs never loads torch",
        "wcl_core/__init__.py",
        "if TYPE_CHECKING:\n    from wcl_core.evaluation",
        "if True:\n    from wcl_core.evaluation",
        ("tests/wcl_core/test_public_names.py::test_the_torch_free_modules_do_not_load_torch[wcl_core.config]",),
    ),
    Guard(
        "a class of two images or more holds out one at least",
        "wcl_core/config/images.py",
        "return max(1, round(share * images)) if share and images > 1 else 0",
        "return round(share * images)",
        ("tests/wcl_core/data/test_held_out.py::test_the_held_out_images_depend_on_the_labels_only",),
    ),
    Guard(
        "overrides merge object by object",
        "wcl_core/config/overlay.py",
        "both_are_objects = isinstance(below, dict) and isinstance(value, dict)",
        "both_are_objects = False",
        ("tests/wcl_core/test_overlay.py::test_objects_merge_field_by_field_and_all_else_whole",),
    ),
    Guard(
        "a protocol reports the measures of the table",
        "wcl_core/config/protocols.py",
        '            Measure("recall_at_5", "recall at 5"),\n',
        "",
        (
            "tests/wcl_core/evaluation/test_protocols.py"
            "::test_a_protocol_reports_the_measures_of_the_table_in_its_order[retrieval]",
        ),
    ),
    Guard(
        "fsync of a file before its rename",
        "wcl_core/files.py",
        "            os.fsync(file.fileno())\n",
        "",
        (
            "tests/wcl_core/test_checkpoint.py::test_the_name_exists_only_after_the_content_is_on_the_disk",
            "tests/wcl_core/test_files.py::test_each_caller_syncs_the_file_renames_it_and_syncs_the_folder[write_checkpoint]",
        ),
    ),
    Guard(
        "fsync of a folder after the rename",
        "wcl_core/files.py",
        "            sync_folder(folder)\n",
        "            pass\n",
        (
            "tests/wcl_core/test_files.py::test_each_caller_syncs_the_file_renames_it_and_syncs_the_folder[make_local_key]",
        ),
    ),
    Guard(
        "no anchor sees an empty row of the queue",
        "wcl_core/methods/key_masks.py",
        "(self.ids[rows, None] == self.key_ids) | (self.key_ids < 0)",
        "self.ids[rows, None] == self.key_ids",
        ("tests/wcl_core/methods/test_losses.py::test_a_mask_by_image_hides_the_same_keys_as_a_bool_mask[True]",),
    ),
    Guard(
        "small crops do not see other rows of their own image",
        "wcl_core/methods/multicrop.py",
        "    if images is not None:\n",
        "    if False:\n",
        ("tests/wcl_core/methods/test_objective.py::test_every_combination_is_its_definition",),
    ),
    Guard(
        "text of a record is text that every database takes",
        "wcl_core/protocol.py",
        '        if rb"\\u0000" not in line:\n',
        "        if True:\n",
        ("tests/worker/test_spool.py::test_text_and_numbers_of_records_are_ones_that_every_database_takes",),
    ),
    Guard(
        "integers of a record fit a database's column",
        "wcl_core/protocol.py",
        "_Int64 = Annotated[int, Field(ge=0, lt=1 << 63)]",
        "_Int64 = int",
        ("tests/wcl_core/test_protocol.py::test_an_invalid_record_is_refused_by_its_field",),
    ),
    Guard(
        "the JSON of a spool stays as earlier versions wrote it",
        "wcl_core/protocol.py",
        '    file: str = Field(validation_alias="path", serialization_alias="path")\n'
        "    sha256: str\n    size: _Int64\n    metrics: _JsonObject\n",
        "    file: str\n    sha256: str\n    size: _Int64\n    metrics: _JsonObject\n",
        ("tests/wcl_core/test_protocol.py::test_records_of_an_earlier_version_are_read_and_written_unchanged",),
    ),
    Guard(
        "held-out images are not trained on",
        "wcl_core/training/pretrain.py",
        "        dataset = with_held_out(dataset, config.data.held_out_share)\n",
        "",
        ("tests/wcl_core/data/test_held_out.py::test_held_out_images_are_not_trained_on",),
    ),
    Guard(
        "the losses since the last log survive a resume",
        "wcl_core/training/run_metrics.py",
        '        self.window.total = part("metrics/").get("window")\n',
        "",
        (
            "tests/wcl_core/training/test_pretrain.py::test_metrics_after_a_resume_are_those_of_an_uninterrupted_run[1-3]",
        ),
    ),
    Guard(
        "the latest metrics survive a resume",
        "wcl_core/training/run_metrics.py",
        '        self.latest.update(facts.get("latest", {}))\n',
        "",
        ("tests/wcl_core/training/test_pretrain.py::test_the_metrics_of_a_checkpoint_survive_a_resume",),
    ),
    Guard(
        "the count of signs of collapse survives a resume",
        "wcl_core/training/run_metrics.py",
        '        self.collapse.signs_in_a_row = facts.get("collapse_signs", 0)\n',
        "",
        ("tests/wcl_core/training/test_collapse.py::test_the_count_of_signs_continues_after_a_resume",),
    ),
    Guard(
        "a user who resumes after a collapse gets three checks",
        "wcl_core/training/pretrain.py",
        "            self.metrics.collapse.signs_in_a_row = 0  # a user who resumes gets as many checks again\n",
        "",
        (
            "tests/wcl_core/training/test_collapse.py"
            "::test_a_job_that_is_resumed_after_a_collapse_gets_three_checks_again",
        ),
    ),
    Guard(
        "an artifact's name is not a path",
        "worker/delivery.py",
        "if isinstance(record, ArtifactRecord) and (refusal := record.refusal()):",
        'if isinstance(record, ArtifactRecord) and (refusal := ""):',
        ("tests/worker/test_delivery.py::test_a_damaged_or_invalid_artifact_becomes_a_warning_and_is_not_kept",),
    ),
    Guard(
        "a worker counts only the GPUs that it may use",
        "worker/devices.py",
        'if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:',
        'if (visible := os.environ.get("NONE")) is not None:',
        ("tests/worker/test_devices.py::test_only_visible_gpus_count",),
    ),
    Guard(
        "an invalid record does not block the next ones",
        "worker/spool.py",
        "            except ValueError as error:\n                self._problems.append(str(error))\n",
        "            except ZeroDivisionError:\n                pass\n",
        ("tests/worker/test_spool.py::test_an_invalid_record_becomes_a_warning_and_blocks_nothing",),
    ),
    Guard(
        "records are numbered without a gap",
        "worker/spool.py",
        "        if not self._seq < record.seq <= last:\n",
        "        if False:\n",
        ("tests/worker/test_spool.py::test_an_invalid_record_becomes_a_warning_and_blocks_nothing",),
    ),
)
