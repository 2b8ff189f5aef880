//! What the safe binding lacks, asked of librdkafka itself: topics with their identities, the offsets of a group and what
//! becomes of a commit, the cluster's identity without a leak, where one partition stands, and what a client that nobody
//! polls has to say.
#![expect(unsafe_code, reason = "these are reached through librdkafka's C interface only")]

use std::{
    ffi::{CStr, CString, c_char},
    time::Duration,
};

use rdkafka::{ClientContext, TopicPartitionList, bindings as c, client::Client, types::RDKafkaErrorCode as Code};

use super::{cluster::Context, error::coded};
use crate::{
    Error, ErrorKind, Result,
    log::{GroupOffset, Topic},
    topic::TopicPartition,
};

/// What brokers before 2.8 tell for a topic's identity.
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// A topic, and whether it is the cluster's own.
pub(super) struct Described {
    pub(super) topic: Topic,
    pub(super) internal: bool,
}

/// The identity of the cluster, if it comes in time. Blocks.
pub(super) fn cluster_id(client: &Client<Context>, time: Duration) -> Option<String> {
    let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the text belongs to the caller, who copies and then frees it.
    unsafe {
        let id = c::rd_kafka_clusterid(client.native_ptr(), millis);
        let copy = (!id.is_null()).then(|| text(id));
        if !id.is_null() {
            c::rd_kafka_mem_free(client.native_ptr(), id.cast());
        }
        copy
    }
}

/// Takes what a client that nobody polls has put aside: logs and errors of its connections.
pub(super) fn take_events(client: &Client<Context>) {
    // SAFETY: the queue is given back, and each event destroyed, once.
    unsafe {
        let queue = c::rd_kafka_queue_get_main(client.native_ptr());
        loop {
            let event = c::rd_kafka_queue_poll(queue, 0);
            if event.is_null() {
                break;
            }
            c::rd_kafka_event_destroy(event);
        }
        c::rd_kafka_queue_destroy(queue);
    }
}

/// Sets each partition of the list to the offset behind what was taken of it last. Does not block, other than the
/// binding's own call, which asks librdkafka's thread for the whole assignment first.
pub(super) fn positions(client: &Client<Context>, list: &TopicPartitionList) {
    // SAFETY: both outlive the call, which looks at fields under locks of its own; it cannot fail.
    unsafe { c::rd_kafka_position(client.native_ptr(), list.ptr()) };
}

/// Describes topics by name; those that do not exist are left out. Blocks.
pub(super) fn describe(client: &Client<Context>, names: &[String], time: Duration) -> Result<Vec<Described>> {
    let names = names.iter().map(|name| CString::new(name.as_str())).collect::<Result<Vec<_>, _>>();
    let names = names.map_err(|_| Error::invalid("a topic name holds a zero byte"))?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: all that is made here is destroyed here, after the answer, which borrows from the event, was copied. `names`
    // and `client` outlive the calls. Each pointer that may be null is looked at first.
    unsafe {
        let rk = client.native_ptr();
        let queue = c::rd_kafka_queue_new(rk);
        let options = c::rd_kafka_AdminOptions_new(rk, c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let mut told = [0; 256];
        c::rd_kafka_AdminOptions_set_request_timeout(options, millis, told.as_mut_ptr(), told.len());
        let wanted = c::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        c::rd_kafka_DescribeTopics(rk, wanted, options, queue);
        let event = c::rd_kafka_queue_poll(queue, millis.saturating_add(1000));
        let described = match event.is_null() {
            true => Err(Error::unavailable("the Kafka cluster does not describe topics in time")),
            false => take(event),
        };
        if !event.is_null() {
            c::rd_kafka_event_destroy(event);
        }
        c::rd_kafka_TopicCollection_destroy(wanted);
        c::rd_kafka_AdminOptions_destroy(options);
        c::rd_kafka_queue_destroy(queue);
        described
    }
}

/// # Safety
/// `event` is the answer to a description of topics.
unsafe fn take(event: *mut c::rd_kafka_event_t) -> Result<Vec<Described>> {
    // SAFETY: as the caller promises; what is read lives as long as the event, and is copied.
    unsafe {
        let code = c::rd_kafka_event_error(event);
        if code != c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(coded(code.into(), "describe topics"));
        }
        let result = c::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(Error::internal("librdkafka answers a description with something else"));
        }
        let mut count = 0;
        let first = c::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let mut topics = Vec::with_capacity(count);
        for i in 0..count {
            let described = *first.add(i);
            let name = text(c::rd_kafka_TopicDescription_name(described));
            let error = c::rd_kafka_TopicDescription_error(described);
            let code = c::rd_kafka_error_code(error).into();
            if !error.is_null() && code != Code::NoError {
                let error = coded(code, format!("topic {name:?}"));
                match error.kind() {
                    ErrorKind::NotFound => continue,
                    _ => return Err(error),
                }
            }
            let mut partitions = 0;
            c::rd_kafka_TopicDescription_partitions(described, &mut partitions);
            let uuid = c::rd_kafka_TopicDescription_topic_id(described);
            let id = text(c::rd_kafka_Uuid_base64str(uuid));
            if id == NO_ID {
                let why = "the Kafka cluster gives topics no identity, as brokers before 2.8";
                return Err(Error::unsupported(format!("topic {name:?}: {why}")));
            }
            let internal = c::rd_kafka_TopicDescription_is_internal(described) != 0;
            topics.push(Described { topic: Topic { name, id, partitions: partitions as u32 }, internal });
        }
        Ok(topics)
    }
}

/// What a group has committed of these partitions; those without an offset are left out. Blocks.
pub(super) fn group_offsets(
    client: &Client<Context>,
    group: &str,
    of: &TopicPartitionList,
    time: Duration,
) -> Result<Vec<(TopicPartition, GroupOffset)>> {
    let name = CString::new(group).map_err(|_| Error::invalid("the name of a group holds a zero byte"))?;
    let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: all that is made here is destroyed here, after the answer, which borrows from the event, was copied. `name`,
    // `of` and `client` outlive the calls. Each pointer that may be null is looked at first.
    unsafe {
        let rk = client.native_ptr();
        let queue = c::rd_kafka_queue_new(rk);
        let kind = c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS;
        let options = c::rd_kafka_AdminOptions_new(rk, kind);
        let mut told = [0; 256];
        c::rd_kafka_AdminOptions_set_request_timeout(options, millis, told.as_mut_ptr(), told.len());
        let mut wanted = c::rd_kafka_ListConsumerGroupOffsets_new(name.as_ptr(), of.ptr());
        c::rd_kafka_ListConsumerGroupOffsets(rk, &raw mut wanted, 1, options, queue);
        let event = c::rd_kafka_queue_poll(queue, millis.saturating_add(1000));
        let offsets = match event.is_null() {
            true => Err(Error::unavailable("the Kafka cluster does not tell a group's offsets in time")),
            false => take_offsets(event, group),
        };
        if !event.is_null() {
            c::rd_kafka_event_destroy(event);
        }
        c::rd_kafka_ListConsumerGroupOffsets_destroy(wanted);
        c::rd_kafka_AdminOptions_destroy(options);
        c::rd_kafka_queue_destroy(queue);
        offsets
    }
}

/// # Safety
/// `event` is the answer to a question for the offsets of one group.
unsafe fn take_offsets(event: *mut c::rd_kafka_event_t, group: &str) -> Result<Vec<(TopicPartition, GroupOffset)>> {
    let what = || format!("offsets of group {group:?}");
    // SAFETY: as the caller promises; what is read lives as long as the event, and is copied.
    unsafe {
        let code = c::rd_kafka_event_error(event);
        if code != c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(coded(code.into(), what()));
        }
        let result = c::rd_kafka_event_ListConsumerGroupOffsets_result(event);
        let mut count = 0;
        let groups = match result.is_null() {
            true => std::ptr::null_mut(),
            false => c::rd_kafka_ListConsumerGroupOffsets_result_groups(result, &mut count),
        };
        if groups.is_null() || count == 0 {
            return Err(Error::internal("librdkafka answers a question for offsets with something else"));
        }
        let error = c::rd_kafka_group_result_error(*groups);
        if !error.is_null() {
            return Err(coded(c::rd_kafka_error_code(error).into(), what()));
        }
        let list = c::rd_kafka_group_result_partitions(*groups);
        let mut offsets = Vec::new();
        for i in 0..if list.is_null() { 0 } else { (*list).cnt as usize } {
            let of = &*(*list).elems.add(i);
            let partition = TopicPartition::new(text(of.topic), u32::try_from(of.partition).unwrap_or(u32::MAX));
            if of.err != c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(coded(of.err.into(), partition));
            }
            if of.offset >= 0 {
                let metadata = match of.metadata.is_null() {
                    true => String::new(),
                    // Of other programs it may be anything.
                    false => String::from_utf8_lossy(std::slice::from_raw_parts(of.metadata.cast(), of.metadata_size))
                        .into_owned(),
                };
                offsets.push((partition, GroupOffset { offset: of.offset, metadata }));
            }
        }
        Ok(offsets)
    }
}

/// The answers to a consumer's commits. The binding tells of a commit either nothing or nothing of its partitions.
pub(super) struct Commits {
    queue: *mut c::rd_kafka_queue_t,
}

impl Commits {
    /// Must be dropped before the client.
    pub(super) fn of<C: ClientContext>(client: &Client<C>) -> Self {
        // SAFETY: the queue is this one's own until it is dropped.
        Self { queue: unsafe { c::rd_kafka_queue_new(client.native_ptr()) } }
    }

    /// Sends a commit.
    pub(super) fn send<C: ClientContext>(&self, client: &Client<C>, list: &TopicPartitionList) -> Result<(), Code> {
        // SAFETY: the list is copied; the answer goes to the queue.
        let code = unsafe {
            c::rd_kafka_commit_queue(client.native_ptr(), list.ptr(), self.queue, None, std::ptr::null_mut())
        };
        outcome(code)
    }

    /// What became of the oldest commit, if it is known: its own error, or the first of a partition.
    pub(super) fn take(&self) -> Option<Result<(), Code>> {
        // SAFETY: the event is looked at, and then destroyed, once; the list is part of it.
        unsafe {
            let event = c::rd_kafka_queue_poll(self.queue, 0);
            if event.is_null() {
                return None;
            }
            let list = c::rd_kafka_event_topic_partition_list(event);
            let count = if list.is_null() { 0 } else { (*list).cnt as usize };
            let mut codes = (0..count).map(|i| outcome((*(*list).elems.add(i)).err));
            let told = codes.find(Result::is_err).unwrap_or_else(|| outcome(c::rd_kafka_event_error(event)));
            c::rd_kafka_event_destroy(event);
            Some(told)
        }
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        // SAFETY: nobody else has the queue.
        unsafe { c::rd_kafka_queue_destroy(self.queue) };
    }
}

fn outcome(code: c::rd_kafka_resp_err_t) -> Result<(), Code> {
    match code {
        c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        code => Err(code.into()),
    }
}

/// # Safety
/// `pointer` is null or a C string.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
