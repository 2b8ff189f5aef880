//! What the safe binding lacks, asked of librdkafka itself: topics with their identities, the cluster's identity without
//! a leak, where one partition stands, and what a client that nobody polls has to say.
#![expect(unsafe_code, reason = "these are reached through librdkafka's C interface only")]

use std::{
    ffi::{CStr, CString, c_char},
    time::Duration,
};

use rdkafka::{TopicPartitionList, bindings as c, client::Client};

use super::{cluster::Context, error::coded};
use crate::{Error, ErrorKind, Result, log::Topic};

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
            if !error.is_null() && code != rdkafka::types::RDKafkaErrorCode::NoError {
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

/// # Safety
/// `pointer` is null or a C string.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
