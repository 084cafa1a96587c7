use headwater_log::{Log, conformance};
use headwater_log_kafka::{KafkaConfig, KafkaLog};
use std::sync::Arc;
struct Subject(KafkaConfig);
impl conformance::Subject for Subject {
    fn open(&self) -> Arc<dyn Log> {
        KafkaLog::connect(&self.0, "conformance").expect("the settings are right")
    }
    fn durable(&self) -> bool {
        true
    }
}
#[test]
fn laws() {
    let config =
        KafkaConfig { bootstrap_servers: "127.0.0.1:29092".into(), ..KafkaConfig::default() };
    let subject = Subject(config);
    let only = std::env::var("LAW").unwrap_or_default();
    let mut bad = Vec::new();
    for (name, law) in conformance::LAWS {
        if !name.contains(&only) {
            continue;
        }
        let begun = std::time::Instant::now();
        let kept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| law(&subject))).is_ok();
        eprintln!("{} {name} {:?}", if kept { "ok " } else { "BAD" }, begun.elapsed());
        if !kept {
            bad.push(name);
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

use headwater_log::{Assignee, GroupId, Membership, TopicSpec};
use headwater_types::{Name, Offset, PartitionId};
struct Me(&'static str, std::sync::Mutex<std::collections::BTreeSet<PartitionId>>);
impl Assignee for Me {
    fn assigned(&self, p: &[PartitionId]) {
        eprintln!("{} assigned {p:?}", self.0);
        self.1.lock().unwrap().extend(p);
    }
    fn revoked(&self, p: &[PartitionId]) {
        eprintln!("{} revoked {p:?}", self.0);
        for x in p {
            self.1.lock().unwrap().remove(x);
        }
    }
    fn lost(&self, p: &[PartitionId]) {
        eprintln!("{} lost {p:?}", self.0);
        for x in p {
            self.1.lock().unwrap().remove(x);
        }
    }
}
#[test]
fn members() {
    let config = KafkaConfig {
        bootstrap_servers: "127.0.0.1:29092".into(),
        session_timeout: std::time::Duration::from_secs(3),
        ..KafkaConfig::default()
    };
    let log = KafkaLog::connect(&config, "m").unwrap();
    let t = Name::new(format!("m.{}", std::process::id())).unwrap();
    log.create_topic(&t, TopicSpec::keep(5)).unwrap();
    let g = GroupId(format!("g.{}", std::process::id()));
    let begun = std::time::Instant::now();
    let (a, b) = (Arc::new(Me("a", Default::default())), Arc::new(Me("b", Default::default())));
    let ma = log.join(&g, &t, a.clone()).unwrap();
    let wait = |what: &str, f: &dyn Fn() -> bool| {
        let s = std::time::Instant::now();
        while !f() {
            assert!(s.elapsed().as_secs() < 20, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        eprintln!("{what} at {:?}", begun.elapsed());
    };
    wait("a has all", &|| a.1.lock().unwrap().len() == 5);
    ma.confirm().unwrap();
    ma.commit(&[(PartitionId(0), Offset(0)), (PartitionId(1), Offset(0))]);
    let mb = log.join(&g, &t, b.clone()).unwrap();
    wait("shared", &|| a.1.lock().unwrap().len() == 3 && b.1.lock().unwrap().len() == 2);
    ma.confirm().unwrap();
    mb.confirm().unwrap();
    drop(ma);
    eprintln!("left at {:?}", begun.elapsed());
    wait("b has all", &|| b.1.lock().unwrap().len() == 5);
    mb.confirm().unwrap();
    log.delete(&g).unwrap_err();
    drop(mb);
    wait("deleted", &|| log.delete(&g).is_ok());
    log.delete(&g).unwrap();
}
