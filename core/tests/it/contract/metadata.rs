//! Topics, and the log's own tables.

use tidemill_core::{
    ErrorKind,
    engine::Table,
    log::{FetchOptions, TopicChange},
    topic::{TopicPartition, TopicSpec},
};

use super::bed::{Bed, all, first, refused, soon, texts};

pub async fn topics_come_and_go_and_come_with_another_id(bed: Bed) {
    let (session, name) = (bed.session().await, bed.name("a"));
    let spec = TopicSpec::partitions(3);
    let made = session.create_topic(&name, &spec).await.expect("made");
    assert_eq!((made.name.as_str(), made.partitions), (name.as_str(), 3));
    assert!(!made.id.is_empty());
    assert_eq!(session.topic(&name).await.expect("asked").as_ref(), Some(&made));
    assert!(session.topics().await.expect("listed").contains(&made));
    refused(session.create_topic(&name, &spec).await, ErrorKind::Conflict);
    let to = TopicPartition::new(&name, 2);
    session.append(&to, texts(["old"])).await.expect("appended");
    assert_eq!(first(&*session, &to, 1).await, ["old"]);
    session.delete_topic(&name).await.expect("deleted");
    assert_eq!(session.topic(&name).await.expect("asked"), None);
    assert!(session.topics().await.expect("listed").iter().all(|topic| topic.name != name));
    refused(session.fetch(&to, 0, &FetchOptions::default()).await, ErrorKind::NotFound);
    let anew = session.create_topic(&name, &spec).await.expect("made anew");
    assert_ne!(anew.id, made.id, "it has the id of the old one");
    assert_eq!(all(&*session, &to).await, [""; 0], "of the old topic nothing is left");
    session.append(&to, texts(["new"])).await.expect("appended");
    assert_eq!(first(&*session, &to, 1).await, ["new"]);
    for bad in ["", "a b", "..", &"x".repeat(250)] {
        refused(session.create_topic(bad, &spec).await, ErrorKind::Invalid);
    }
    refused(session.create_topic(&bed.name("b"), &TopicSpec::partitions(0)).await, ErrorKind::Invalid);
}

pub async fn a_topics_settings_are_changed_and_it_grows(bed: Bed) {
    let (session, name) = (bed.session().await, bed.name("a"));
    let mut spec = TopicSpec::partitions(2);
    spec.config.set("segment.bytes", "1048576").expect("a setting");
    session.create_topic(&name, &spec).await.expect("made");
    let setting = async |of: &str| session.topic_config(&name).await.expect("asked").get(of).expect("a setting");
    assert_eq!([setting("segment.bytes").await, setting("retention.ms").await], ["1048576", "-1"], "nothing expires");
    let change = |settings: &[(&str, Option<&str>)], partitions| TopicChange {
        partitions,
        settings: settings.iter().map(|(name, value)| ((*name).into(), value.map(str::to_owned))).collect(),
    };
    let altered = change(&[("retention.ms", Some("86400000")), ("cleanup.policy", Some("compact"))], Some(3));
    session.alter_topic(&name, &altered).await.expect("altered");
    let now = [setting("segment.bytes").await, setting("retention.ms").await, setting("cleanup.policy").await];
    assert_eq!(now, ["1048576", "86400000", "compact"], "what is not named stays");
    assert_eq!(session.topic(&name).await.expect("asked").expect("there").partitions, 3);
    let third = TopicPartition::new(&name, 2);
    session.append(&third, texts(["new"])).await.expect("appended");
    assert_eq!(first(&*session, &third, 1).await, ["new"]);
    let back = change(&[("cleanup.policy", None), ("retention.ms", None)], None);
    session.alter_topic(&name, &back).await.expect("set back");
    assert_eq!([setting("cleanup.policy").await, setting("retention.ms").await], ["delete", "-1"]);
    for bad in [
        change(&[("retention", Some("1"))], None),
        change(&[("retention.ms", Some("soon"))], None),
        change(&[], Some(1)),
    ] {
        refused(session.alter_topic(&name, &bad).await, ErrorKind::Invalid);
    }
    refused(session.alter_topic(&bed.name("b"), &back).await, ErrorKind::NotFound);
    refused(session.topic_config(&bed.name("b")).await, ErrorKind::NotFound);
    refused(session.alter_topic("_tidemill.positions", &back).await, ErrorKind::Denied);
}

pub async fn the_logs_own_topics_are_its_own(bed: Bed) {
    let session = bed.session().await;
    drop(bed.writer("w").await);
    assert!(session.topics().await.expect("listed").iter().all(|topic| !topic.name.starts_with('_')));
    let own = TopicPartition::new("_tidemill.positions", 0);
    refused(session.append(&own, texts(["x"])).await, ErrorKind::Denied);
    refused(bed.writer("w").await.append(&own, texts(["x"])).await, ErrorKind::Denied);
    refused(session.create_topic("_tidemill.more", &TopicSpec::default()).await, ErrorKind::Denied);
    refused(session.delete_topic("_tidemill.positions").await, ErrorKind::Denied);
}

pub async fn a_record_is_replaced_only_at_its_version(bed: Bed) {
    let (session, key) = (bed.session().await, bed.name("key"));
    let put = async |value: Option<&str>, expected| {
        session.put(Table::Schemas, &key, value.map(str::to_owned), expected).await
    };
    let entry = async || session.table(Table::Schemas).await.expect("read").get(&key).cloned();
    assert_eq!(entry().await, None);
    refused(put(Some("x"), Some(3)).await, ErrorKind::Conflict);
    let first = put(Some("one"), None).await.expect("put");
    assert_eq!(entry().await.map(|e| (e.value, e.version)), Some(("one".into(), first)));
    refused(put(Some("x"), None).await, ErrorKind::Conflict);
    let second = put(Some("two"), Some(first)).await.expect("put");
    assert!(second > first);
    refused(put(Some("x"), Some(first)).await, ErrorKind::Conflict);
    assert_eq!(entry().await.map(|e| (e.value, e.version)), Some(("two".into(), second)));
    put(None, Some(second)).await.expect("deleted");
    assert_eq!(entry().await, None);
    put(Some("again"), None).await.expect("put");
}

pub async fn of_two_who_put_one_wins(bed: Bed) {
    let (one, two) = (bed.session().await, bed.other_session().await);
    for round in 0..4 {
        let key = bed.name(&format!("key{round}"));
        let put = |session: &std::sync::Arc<dyn tidemill_core::log::Session>, value: &str| {
            let (session, key, value) = (std::sync::Arc::clone(session), key.clone(), value.to_owned());
            tokio::spawn(async move { session.put(Table::Schemas, &key, Some(value), None).await })
        };
        let (a, b) = (put(&one, "a"), put(&two, "b"));
        let (a, b) = soon("two puts", async { (a.await.expect("joined"), b.await.expect("joined")) }).await;
        let winner = match (a, b) {
            (Ok(_), Err(refused)) => {
                assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
                "a"
            }
            (Err(refused), Ok(_)) => {
                assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
                "b"
            }
            other => panic!("not one of them won: {other:?}"),
        };
        for session in [&one, &two] {
            assert_eq!(session.table(Table::Schemas).await.expect("read")[&key].value, winner);
        }
        // Each of two different keys gets its value, however they disturb each other.
        let both = [(&one, "c"), (&two, "d")].map(|(session, name)| {
            let (session, key) = (std::sync::Arc::clone(session), format!("{key}.{name}"));
            tokio::spawn(async move { session.put(Table::Schemas, &key, Some("x".into()), None).await })
        });
        for put in both {
            soon("a put", put).await.expect("joined").expect("its key was free");
        }
    }
}

pub async fn the_log_has_one_identity(bed: Bed) {
    let (one, two) = (bed.session().await, bed.other_session().await);
    assert!(!one.log_id().is_empty());
    assert_eq!(one.log_id(), two.log_id());
}
