//! Headwater from outside: the real binaries, their gRPC, their files, their exit codes.
//!
//! ```text
//!  a test in one process               a test with containers (docker::test)
//!
//!  test ─ gRPC, HTTP ─> headwater dev  test ─ gRPC, HTTP ─> ingest ───────┐
//!   │                   (a child:       │ │                 coordinator ──┼─> kafka    s3proxy
//!   │                   all services,   │ │                 processor-1 ──┤  (Broker) (Object-
//!   │                   embedded log)   │ │                   │ volume    │            Store)
//!   │                      │            │ │                 query-1 ──────┘
//!   └─ failpoints, kill ───┘            │ └─ failpoints, docker kill, docker pause
//!                                       └─ librdkafka, Kafka's tools: what lies in the topics
//! ```
//!
//! A test starts a [`dev::Dev`] or a [`cluster::Cluster`]; both are a [`platform::Platform`], which
//! gives a client for each service. What is started ends with its value, also when a test fails.
//!
//! # No test depends on the speed of a machine
//!
//! A test that interrupts something makes it stand still at a point ([`failpoints`]) or holds the
//! replay before a phase (`hold_before`), sees in the topics that it stands there
//! ([`topics::replay_until`]), and only then kills. Events flow when the test says so
//! ([`feed::Feeder`]). A test waits for what must come in the end ([`patience::eventually`]) and
//! never for a time after which something must have come. It may watch for some seconds that
//! something does *not* happen, a flood of messages for example: a slow machine cannot make that
//! fail. docs/testing.md has the layers.
//!
//! # Which file to open
//!
//! | for | file |
//! | --- | --- |
//! | `headwater dev` as a child process: started, asked, killed | [`dev`] |
//! | the four services in containers, on a real broker | [`cluster`] |
//! | one container: Kafka, a service, an S3-compatible store; what is removed when | [`docker`] |
//! | clients of the services | [`platform`] |
//! | a process that stands still at a named point | [`failpoints`] |
//! | waiting | [`patience`] |
//! | flights on their way through ingest, and what was said of each | [`feed`] |
//! | the flights, and the rows that views of them must have, by plain loops | [`flights`] |
//! | answers of the query service as plain values, and the laws that they must keep | [`views`] |
//! | replays from their start to their end | [`replays`] |
//! | the demonstration's story, every number checked | [`story`] |
//! | what lies in topics, read past every service | [`topics`] |
//! | topics that other people's clients write | [`foreign`] |
//! | the log library on this machine, with a login | [`kafka_login`] |
//! | an endpoint that issues tokens for OAUTHBEARER | [`tokens`] |
//!
//! `HEADWATER` names the binary, as the scripts set it; without it, it is built on first use.

pub mod cluster;
pub mod dev;
pub mod docker;
pub mod failpoints;
pub mod feed;
pub mod flights;
pub mod foreign;
pub mod kafka_login;
pub mod patience;
pub mod platform;
pub mod replays;
pub mod story;
pub mod tokens;
pub mod topics;
pub mod views;
