//! What the `Log` seam promises, as tests that know nothing but `dyn Log`. Every implementation runs all of them: the
//! embedded log, the embedded log with gaps between its offsets, and a real broker of Apache Kafka (feature `kafka`).
//! `twins` shows of the important ones that they can fail.

mod bed;
mod gaps;
mod groups;
mod metadata;
pub mod reads;
mod transactions;
mod twins;

pub use bed::Bed;

/// One test of each rule for each implementation.
macro_rules! contract {
    ($($file:ident: $($rule:ident)*;)*) => {
        mod embedded {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    super::$file::$rule(super::Bed::embedded().await).await;
                }
            )*)*
        }
        mod gapped {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    super::$file::$rule(super::Bed::gapped().await).await;
                }
            )*)*
        }
        #[cfg(feature = "kafka")]
        mod kafka {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    if let Some(bed) = super::Bed::kafka().await {
                        super::$file::$rule(bed).await;
                    }
                }
            )*)*
        }
    };
}

contract! {
    reads:
        records_come_back_as_they_were
        a_read_ends_at_its_bound_though_offsets_have_gaps
        a_read_is_cut_by_bytes_and_goes_on
        a_read_waits_for_what_comes
        a_dropped_read_loses_nothing
        large_records_pass_and_larger_ones_are_refused
        records_that_a_topic_refuses_are_invalid
        what_is_not_there_is_named
        offsets_out_of_range_are_invalid
        a_time_finds_its_first_record
        two_readers_do_not_disturb_each_other
        many_partitions_are_read_on_in_turns;
    transactions:
        a_transaction_is_seen_as_a_whole
        what_is_aborted_or_dropped_is_never_seen
        an_older_writer_is_refused
        a_writer_fenced_before_its_commit_is_refused
        an_idle_writer_that_was_fenced_is_refused
        positions_are_those_of_the_last_commit
        an_open_transaction_of_another_hides_no_position
        a_failed_append_leaves_only_the_abort
        a_dropped_commit_ends_its_writer
        writers_of_several_owners_do_not_meet
        a_transaction_without_records_moves_positions;
    metadata:
        topics_come_and_go_and_come_with_another_id
        a_topics_settings_are_changed_and_it_grows
        the_logs_own_topics_are_its_own
        a_record_is_replaced_only_at_its_version
        of_two_who_put_one_wins
        the_log_has_one_identity;
    groups:
        a_lone_member_gets_everything
        two_members_share_and_who_leaves_gives_back
        nobody_gets_what_another_has_not_let_go
        offsets_come_back_with_their_metadata
        bad_commits_are_refused
        bad_names_and_options_are_refused
        who_does_not_let_go_is_expelled
        a_static_member_comes_back_to_what_it_had
        who_deals_otherwise_is_refused
        ranges_are_the_same_in_each_topic
        a_topic_that_comes_later_is_dealt
        a_deleted_topics_offsets_are_forgotten
        slots_are_shared_and_released
        the_number_of_slots_only_grows;
}
