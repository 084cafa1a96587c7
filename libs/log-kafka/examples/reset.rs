//! Deletes Headwater's own topics and groups from a broker that is there for measurements: `reset
//! BOOTSTRAP`.

use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
};

fn main() {
    let bootstrap = std::env::args().nth(1).expect("usage: reset BOOTSTRAP");
    let wait = Duration::from_secs(10);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &bootstrap);
    let asker: BaseConsumer = config.create().expect("a client");
    let admin: AdminClient<DefaultClientContext> = config.create().expect("a client");
    let options = AdminOptions::new().operation_timeout(Some(wait));
    let own = || {
        let metadata = asker.fetch_metadata(None, wait).expect("a broker");
        let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
        names.filter(|name| name.starts_with("headwater.")).collect::<Vec<_>>()
    };
    let topics = own();
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    if !names.is_empty() {
        block_on(admin.delete_topics(&names, &options)).expect("topics can be deleted");
    }
    let groups = asker.fetch_group_list(None, wait).expect("groups");
    let groups: Vec<&str> = groups
        .groups()
        .iter()
        .map(|group| group.name())
        .filter(|name| name.starts_with("headwater."))
        .collect();
    if !groups.is_empty() {
        for outcome in
            block_on(admin.delete_groups(&groups, &options)).expect("groups can be deleted")
        {
            if let Err((group, code)) = outcome {
                eprintln!("group {group}: {code}");
            }
        }
    }
    let begun = Instant::now();
    while !own().is_empty() {
        assert!(begun.elapsed() < wait, "the topics are still there");
        std::thread::sleep(Duration::from_millis(100));
    }
}
