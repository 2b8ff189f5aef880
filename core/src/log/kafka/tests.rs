//! What a real broker does not do on demand: librdkafka's own mock of a cluster lags, moves leaders, and counts clients.

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _},
    types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer},
};

use super::*;
use crate::log::Caller;

const UNKNOWN: Answer = Answer::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;

fn mock(topics: &[(&str, i32)]) -> MockCluster<'static, DefaultProducerContext> {
    let mock = MockCluster::new(2).unwrap();
    for (name, partitions) in topics {
        mock.create_topic(name, *partitions, 1).unwrap();
    }
    mock
}

async fn connect(mock: &MockCluster<'static, DefaultProducerContext>) -> Kafka {
    Kafka::connect(&format!("kafka://{}", mock.bootstrap_servers())).await.unwrap()
}

fn write(mock: &MockCluster<'static, DefaultProducerContext>, topic: &str, partition: u32, key: &[u8]) {
    let mut config = ClientConfig::new();
    let producer: BaseProducer = config.set("bootstrap.servers", mock.bootstrap_servers()).create().unwrap();
    let record = BaseRecord::to(topic).partition(partition as i32).key(key).payload("7");
    producer.send(record).unwrap();
    producer.flush(Duration::from_secs(10)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_log_that_is_dropped() {
    let topic = Table::Positions.topic();
    let mock = mock(&[(&topic, 16)]);
    let home = crate::topic::partition_of(b"w", 16);
    write(&mock, &topic, home, &crate::engine::Engine::position_key("w", "p"));
    let log = connect(&mock).await;
    let session = log.session(Caller::internal("test")).await.unwrap();
    // Reads the table, and so opens all that a log keeps.
    assert_eq!(session.positions("w").await.unwrap()["p"], "7");
    let cluster = Arc::downgrade(&log.cluster);
    drop((log, session));
    assert!(cluster.upgrade().is_none(), "its parts hold each other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_moves_is_waited_for() {
    let mock = mock(&[("a", 1)]);
    write(&mock, "a", 0, b"k");
    let log = connect(&mock).await;
    let of = TopicPartition::new("a", 0);
    for answer in [
        Answer::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Answer::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        Answer::RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH,
        UNKNOWN,
    ] {
        mock.request_errors(Api::ListOffsets, &[answer; 2]);
        let bounds = log.cluster.bounds(vec![of.clone()]).await.unwrap();
        assert_eq!(bounds[0].durable_offset, 1, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lags_is_asked_again() {
    let mock = mock(&[("a", 1)]);
    write(&mock, "a", 0, b"k");
    let log = connect(&mock).await;
    mock.topic_error("a", UNKNOWN).unwrap();
    let of = TopicPartition::new("a", 0);
    let asked = tokio::spawn({
        let (cluster, of) = (Arc::clone(&log.cluster), of.clone());
        async move { topics::check_partition(&cluster, &of).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!asked.is_finished(), "it is not believed at once");
    mock.topic_error("a", Answer::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    asked.await.unwrap().unwrap();
    // What no broker and no controller tells of for long is not there.
    let missing = TopicPartition::new("b", 0);
    let begun = std::time::Instant::now();
    let error = topics::check_partition(&log.cluster, &missing).await.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::NotFound, "{error}");
    assert!(begun.elapsed() >= Duration::from_secs(4), "after {:?}", begun.elapsed());
}

/// librdkafka reads what is compressed only in the ways that it is built with.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_others_compressed_are_read() {
    let mock = mock(&[("a", 1)]);
    let mut wanted = Vec::new();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", mock.bootstrap_servers()).set("compression.codec", codec);
        let producer: BaseProducer = config.set("linger.ms", "50").create().unwrap();
        for i in 0..20 {
            let value = format!("{codec} {i} {}", "x".repeat(200));
            producer.send(BaseRecord::<(), str>::to("a").partition(0).payload(&value)).unwrap();
            wanted.push(value);
        }
        producer.flush(Duration::from_secs(10)).unwrap();
    }
    let session = connect(&mock).await.session(Caller::internal("test")).await.unwrap();
    let of = TopicPartition::new("a", 0);
    let (mut next, mut values) = (0, Vec::new());
    while next < 100 {
        let options = FetchOptions { end: Some(100), ..FetchOptions::default() };
        let chunk = session.fetch(&of, next, &options).await.unwrap();
        values.extend(chunk.records.iter().map(|r| String::from_utf8(r.value.as_ref().unwrap().to_vec()).unwrap()));
        next = chunk.next_offset;
    }
    assert_eq!(values, wanted);
}
