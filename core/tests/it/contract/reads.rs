//! Appending, fetching, bounds.

use std::time::Duration;

use bytes::Bytes;
use tidemill_core::{
    ErrorKind,
    log::FetchOptions,
    record::{Header, Record, Timestamp},
    topic::{TopicPartition, TopicSpec},
};

use super::bed::{Bed, LATE, all, first, records_to, refused, soon, text, texts, value_of};

pub async fn records_come_back_as_they_were(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let header = |name: &'static str, value: Option<&'static str>| Header {
        name: Bytes::from_static(name.as_bytes()),
        value: value.map(|v| Bytes::from_static(v.as_bytes())),
    };
    let written = vec![
        Record {
            key: Some(Bytes::from_static(b"\x00\xffkey")),
            value: Some(Bytes::from_static(b"value\x00")),
            headers: vec![header("h", Some("1")), header("h", None), header("e", Some(""))],
            timestamp: Some(Timestamp(1_700_000_000_123)),
        },
        Record { value: None, ..Record::new(Some(Bytes::from_static(b"deleted")), None) },
        Record { key: None, ..Record::new(None, Some(Bytes::new())) },
        Record { timestamp: Some(Timestamp(1)), ..text("old") },
    ];
    let appended = session.append(&to, written.clone()).await.expect("appended");
    assert!(appended.first_offset < appended.last_offset);
    let end = appended.last_offset + 1;
    first_seen(&*session, &to, end).await;
    let read = records_to(&*session, &to, 0, end).await;
    assert_eq!((read[0].offset, read[3].offset), (appended.first_offset, appended.last_offset));
    assert_eq!(read.len(), written.len());
    for (read, written) in read.iter().zip(&written) {
        assert_eq!((&read.key, &read.value, &read.headers), (&written.key, &written.value, &written.headers));
        match written.timestamp {
            Some(at) => assert_eq!(read.timestamp, at),
            None => assert!(read.timestamp.0 > 1_700_000_000_000, "stamped when appended"),
        }
    }
    refused(session.append(&to, Vec::new()).await, ErrorKind::Invalid);
}

/// Waits until the bounds reach an offset.
async fn first_seen(session: &dyn tidemill_core::log::Session, of: &TopicPartition, end: i64) {
    let reaches = async {
        while session.bounds(std::slice::from_ref(of)).await.expect("bounds")[0].durable_offset < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the end of the partition", reaches).await;
}

pub async fn a_read_ends_at_its_bound_though_offsets_have_gaps(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let mut writer = bed.writer("w").await;
    for i in 0..12 {
        match i % 3 {
            0 => {
                writer.append(&to, vec![text("aborted")]).await.expect("staged");
                writer.abort().await.expect("aborted");
            }
            1 => drop(session.append(&to, vec![text(i.to_string())]).await.expect("appended")),
            _ => {
                writer.append(&to, vec![text(i.to_string())]).await.expect("staged");
                writer.commit().await.expect("committed");
            }
        }
    }
    let wanted = ["1", "2", "4", "5", "7", "8", "10", "11"];
    assert_eq!(first(&*session, &to, wanted.len()).await, wanted);
    assert_eq!(soon("a bounded read", all(&*session, &to)).await, wanted, "up to the bounds");
    let bounds = session.bounds(std::slice::from_ref(&to)).await.expect("bounds")[0];
    let records = records_to(&*session, &to, 0, bounds.durable_offset).await;
    // Any offset between may be a bound, and where a read begins.
    for end in 0..=bounds.durable_offset {
        let below: Vec<_> = records.iter().filter(|r| r.offset < end).map(value_of).collect();
        let read = soon("a bounded read", records_to(&*session, &to, 0, end)).await;
        assert_eq!(read.iter().map(value_of).collect::<Vec<_>>(), below, "below {end}");
        let beyond: Vec<_> = records.iter().filter(|r| r.offset >= end).map(value_of).collect();
        let read = soon("a read from a gap", records_to(&*session, &to, end, bounds.durable_offset)).await;
        assert_eq!(read.iter().map(value_of).collect::<Vec<_>>(), beyond, "from {end}");
    }
}

pub async fn a_read_is_cut_by_bytes_and_goes_on(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    for part in 0..3 {
        let records = (part * 100..(part + 1) * 100).map(|i| text(format!("{i:>1000}"))).collect();
        session.append(&to, records).await.expect("appended");
    }
    let (mut next, mut chunks, mut read) = (0, 0, Vec::new());
    let options = FetchOptions { max_bytes: 20_000, max_wait: Duration::from_secs(5), ..FetchOptions::default() };
    while read.len() < 300 {
        let chunk = soon("a chunk", session.fetch(&to, next, &options)).await.expect("a chunk");
        chunks += usize::from(!chunk.records.is_empty());
        read.extend(chunk.records.iter().map(|r| value_of(r).trim().to_owned()));
        next = chunk.next_offset;
    }
    assert_eq!(read, (0..300).map(|i| i.to_string()).collect::<Vec<_>>());
    assert!(chunks > 1, "one chunk of all");
    let tiny = FetchOptions { max_bytes: 1, max_wait: Duration::from_secs(5), ..FetchOptions::default() };
    assert!(!session.fetch(&to, 0, &tiny).await.expect("a chunk").records.is_empty(), "at least one record comes");
}

pub async fn a_read_waits_for_what_comes(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let options = |max_wait| FetchOptions { max_wait, ..FetchOptions::default() };
    let before = tokio::time::Instant::now();
    let chunk = session.fetch(&to, 0, &options(Duration::from_millis(300))).await.expect("nothing");
    assert!(chunk.records.is_empty() && chunk.next_offset == 0, "{chunk:?}");
    assert!(before.elapsed() >= Duration::from_millis(290), "it did not wait");
    let waiting = tokio::spawn({
        let (session, to) = (bed.session().await, to.clone());
        async move {
            let chunk = session.fetch(&to, 0, &options(Duration::from_secs(30))).await.expect("a chunk");
            (chunk, tokio::time::Instant::now())
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    session.append(&to, vec![text("come")]).await.expect("appended");
    let appended = tokio::time::Instant::now();
    let (chunk, woken) = soon("the waiting read", waiting).await.expect("joined");
    assert_eq!(chunk.records.iter().map(value_of).collect::<Vec<_>>(), ["come"]);
    assert!(woken < appended + Duration::from_secs(3), "woken late");
}

pub async fn a_dropped_read_loses_nothing(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    for i in 0..40 {
        session.append(&to, vec![text(i.to_string())]).await.expect("appended");
    }
    let (mut next, mut read, mut dropped) = (0, Vec::new(), 0);
    let options = FetchOptions { max_bytes: 1, max_wait: Duration::from_millis(200), end: None };
    let (mut patience, mut idle) = (0, 0);
    while read.len() < 40 {
        // Most are too short; each twentieth has all the time it wants.
        patience = (patience + 7) % 20;
        let limit = if patience == 0 { LATE } else { Duration::from_micros(patience * patience * 180) };
        let fetch = session.fetch(&to, next, &options);
        match tokio::time::timeout(limit, fetch).await {
            Ok(chunk) => {
                let chunk = chunk.expect("a chunk");
                idle += usize::from(chunk.next_offset == next);
                assert!(idle < 5, "only {read:?} came");
                read.extend(chunk.records.iter().map(value_of));
                next = chunk.next_offset;
            }
            Err(_) => dropped += 1,
        }
    }
    assert_eq!(read, (0..40).map(|i| i.to_string()).collect::<Vec<_>>(), "{dropped} reads were dropped");
}

pub async fn large_records_pass_and_larger_ones_are_refused(bed: Bed) {
    const LARGE: usize = 7 << 20;
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let of = |size: usize| vec![Record::new(None, Bytes::from(vec![b'x'; size]))];
    session.append(&to, of(LARGE)).await.expect("appended");
    refused(session.append(&to, of(20 << 20)).await, ErrorKind::Invalid);
    let mut writer = bed.writer("w").await;
    writer.append(&to, of(LARGE)).await.expect("staged");
    writer.append(&to, of(LARGE)).await.expect("staged");
    writer.commit().await.expect("committed");
    refused(writer.append(&to, of(20 << 20)).await, ErrorKind::Invalid);
    writer.abort().await.expect("aborted");
    let read = first(&*session, &to, 3).await;
    assert!(read.iter().all(|value| value.len() == LARGE));
    assert_eq!(all(&*session, &to).await.len(), 3);
}

/// What a topic will never take is told as such, and stands in nobody's way.
pub async fn records_that_a_topic_refuses_are_invalid(bed: Bed) {
    let (session, name) = (bed.session().await, bed.name("small"));
    let mut spec = TopicSpec::default();
    spec.config.set("max.message.bytes", "4096").expect("a setting");
    session.create_topic(&name, &spec).await.expect("made");
    let (small, to) = (TopicPartition::new(&name, 0), bed.partition("a").await);
    let of = |size: usize| vec![Record::new(Some(Bytes::from_static(b"k")), Bytes::from(vec![b'x'; size]))];
    refused(session.append(&small, of(10_000)).await, ErrorKind::Invalid);
    session.append(&small, of(10)).await.expect("appended");
    let mut writer = bed.writer("w").await;
    writer.append(&to, of(10)).await.expect("staged");
    // At the latest the commit says it; then all of it is aborted.
    let refusal = match writer.append(&small, of(10_000)).await {
        Ok(()) => {
            writer.set_position("p", Some("never".into()));
            writer.commit().await
        }
        early => early,
    };
    refused(refusal, ErrorKind::Invalid);
    refused(writer.commit().await, ErrorKind::Closed);
    writer.abort().await.expect("aborted");
    // Nothing is left open that would hide what comes after it.
    for (i, partition) in [&small, &to].into_iter().enumerate() {
        session.append(partition, of(20)).await.expect("appended");
        assert_eq!(first(&*session, partition, 2 - i).await.len(), 2 - i);
    }
    writer.append(&small, of(30)).await.expect("staged");
    writer.set_position("p", Some("kept".into()));
    writer.commit().await.expect("committed");
    assert_eq!(all(&*session, &small).await.iter().map(String::len).collect::<Vec<_>>(), [10, 20, 30]);
    assert_eq!(bed.writer("w").await.positions()["p"], "kept");
}

pub async fn what_is_not_there_is_named(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let missing = TopicPartition::new(bed.name("missing"), 0);
    let beyond = TopicPartition::new(&to.topic, 7);
    for nowhere in [&missing, &beyond] {
        let message = refused(session.append(nowhere, texts(["x"])).await, ErrorKind::NotFound);
        assert!(message.contains(&nowhere.topic), "{message}");
        refused(session.fetch(nowhere, 0, &FetchOptions::default()).await, ErrorKind::NotFound);
        refused(session.bounds(std::slice::from_ref(nowhere)).await, ErrorKind::NotFound);
        let mut writer = bed.writer("w").await;
        refused(writer.append(nowhere, texts(["x"])).await, ErrorKind::NotFound);
    }
    assert_eq!(session.topic(&missing.topic).await.expect("asked"), None, "asking made it");
    refused(session.delete_topic(&missing.topic).await, ErrorKind::NotFound);
}

pub async fn offsets_out_of_range_are_invalid(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    session.append(&to, texts(["a", "b"])).await.expect("appended");
    first(&*session, &to, 2).await;
    let end = session.bounds(std::slice::from_ref(&to)).await.expect("bounds")[0].durable_offset;
    refused(session.fetch(&to, end + 100, &FetchOptions::default()).await, ErrorKind::Invalid);
    refused(session.fetch(&to, -1, &FetchOptions::default()).await, ErrorKind::Invalid);
    let chunk = session.fetch(&to, end, &FetchOptions::default()).await.expect("the end is in range");
    assert!(chunk.records.is_empty() && chunk.next_offset == end, "{chunk:?}");
}

pub async fn two_readers_do_not_disturb_each_other(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    for i in 0..20 {
        session.append(&to, vec![text(i.to_string())]).await.expect("appended");
    }
    let wanted: Vec<_> = (0..20).map(|i| i.to_string()).collect();
    let read = async |from: usize| {
        let (mut next, mut values) = (0, Vec::new());
        let options = FetchOptions { max_bytes: 1, max_wait: Duration::from_secs(5), end: None };
        while values.len() < 20 {
            let chunk = session.fetch(&to, next, &options).await.expect("a chunk");
            values.extend(chunk.records.iter().map(value_of));
            next = chunk.next_offset;
            for _ in 0..from {
                tokio::task::yield_now().await;
            }
        }
        values
    };
    let (one, two) = soon("two readers", async { tokio::join!(read(0), read(3)) }).await;
    assert_eq!((&one, &two), (&wanted, &wanted));
}

pub async fn many_partitions_are_read_on_in_turns(bed: Bed) {
    turns(&bed, 80).await;
}

/// Each of so many partitions is read on again and again.
pub async fn turns(bed: &Bed, count: u32) {
    let (session, all) = (bed.session().await, bed.partitions("a", count).await);
    for (i, to) in all.iter().enumerate() {
        let records = texts(["a", "b", "c"]).into_iter().chain([text(i.to_string())]).collect();
        session.append(to, records).await.expect("appended");
    }
    let options = FetchOptions { max_bytes: 1, max_wait: Duration::from_secs(5), end: None };
    let mut read = vec![(0, Vec::new()); all.len()];
    for _ in 0..12 {
        for (of, (next, values)) in all.iter().zip(&mut read) {
            if values.len() < 4 {
                let chunk = session.fetch(of, *next, &options).await.expect("a chunk");
                values.extend(chunk.records.iter().map(value_of));
                *next = chunk.next_offset;
            }
        }
    }
    for (i, (_, values)) in read.iter().enumerate() {
        assert_eq!(values, &["a", "b", "c", &i.to_string()], "partition {i}");
    }
}

pub async fn a_time_finds_its_first_record(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    assert_eq!(session.offset_at_time(&to, Timestamp(0)).await.expect("asked"), None, "nothing is there");
    for times in [&[1000, 3000, 2000][..], &[5000], &[4000, 500, 9000, 6000]] {
        let at = |time: &i64| Record { timestamp: Some(Timestamp(*time)), ..text(time.to_string()) };
        session.append(&to, times.iter().map(at).collect()).await.expect("appended");
    }
    let mut found = Vec::new();
    soon("all records", async {
        while found.len() < 8 {
            let end = session.bounds(std::slice::from_ref(&to)).await.expect("bounds")[0].durable_offset;
            found = records_to(&*session, &to, 0, end).await;
        }
    })
    .await;
    for time in [0, 500, 999, 1000, 1001, 2500, 3000, 3001, 5000, 5001, 9000, 9001] {
        let wanted = found.iter().find(|record| record.timestamp.0 >= time).map(|record| record.offset);
        assert_eq!(session.offset_at_time(&to, Timestamp(time)).await.expect("asked"), wanted, "time {time}");
    }
    let nowhere = TopicPartition::new(bed.name("nowhere"), 0);
    assert!(session.offset_at_time(&nowhere, Timestamp(0)).await.is_err());
}
