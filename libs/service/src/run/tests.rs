use std::net::TcpListener as StdListener;

use serde::{Deserialize, Serialize};
use tonic::service::RoutesBuilder;

use super::*;
use crate::Node;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Config {
    max_events: u32,
}

#[derive(Debug)]
struct Ingest;

impl Service for Ingest {
    const NAME: &'static str = "ingest";
    const ABOUT: &'static str = "Accepts events";
    const GRPC: &'static [&'static str] = &[];
    const DATA: Data = Data::Unused;

    type Config = Config;

    fn check(config: &Config) -> anyhow::Result<()> {
        anyhow::ensure!(config.max_events != 13, "ingest.max-events is 13: choose another number");
        Ok(())
    }

    async fn start(_: Config, _: &Node) -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn add_to(&self, _: &mut RoutesBuilder) {}
}

fn parse_with(arguments: &[&str], environment: &[(&str, &str)]) -> Invocation<Config> {
    let arguments = ["headwater-ingest"].iter().chain(arguments).map(OsString::from);
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse::<Ingest>(arguments, environment)
}

fn printed(invocation: Invocation<Config>) -> (u8, String) {
    match invocation {
        Invocation::Print(code, text) => (code, text),
        Invocation::HealthCheck(_) | Invocation::Run(_) => panic!("it prints nothing"),
    }
}

#[test]
fn one_file_serves_all_binaries_and_each_reads_its_part() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "
        [telemetry]\nlog = 'debug'
        [kafka]\nbootstrap-servers = 'kafka:19092'
        [kafka.settings]\n'security.protocol' = 'ssl'
        [server]\nlisten = '0.0.0.0:7400'\nstop-deadline = '9s'
        [checkpoints]\nurl = 's3://bucket/prefix'
        [ingest]\nmax-events = 5
        [query]\nanything = 1";
    std::fs::write(file.path(), text).unwrap();
    let environment = [
        // Both are flags of the command line, and no settings of ours.
        ("HEADWATER_SERVER", "http://127.0.0.1:7400"),
        ("HEADWATER_INGEST_SERVER", "http://127.0.0.1:7400"),
        ("HEADWATER_SERVER__INSTANCE", "one"),
    ];
    let arguments = ["--config", file.path().to_str().unwrap(), "--set", "ingest.max-events=6"];

    let Invocation::Run(settings) = parse_with(&arguments, &environment) else { panic!("it runs") };

    assert_eq!(settings.own, Config { max_events: 6 });
    let common = &settings.common;
    assert_eq!(common.kafka.bootstrap_servers, "kafka:19092");
    assert_eq!(common.server.listen, "0.0.0.0:7400".parse().unwrap());
    assert_eq!(common.server.instance(), "one");
    assert_eq!(common.server.stop_deadline, Duration::from_secs(9));
    assert_eq!(common.checkpoints.url.as_deref(), Some("s3://bucket/prefix"));
}

#[test]
fn what_is_wrong_is_named_with_its_remedy_and_exits_with_2() {
    assert_eq!(
        printed(parse_with(&["--check-config"], &[])),
        (0, "configuration is fine\n".into())
    );
    let cases: [(&[&str], &str); 9] = [
        (&["--set", "ingest.max-event=5"], "--set ingest.max-event: unknown field `max-event`"),
        (&["--set", "ingest.max-events=13"], "choose another number"),
        (&["--set", "ingest"], "write KEY=VALUE"),
        (&["--set", "nonsense.x=1"], "nonsense"),
        (&["--set", "server.http=127.0.0.1:7400"], "give them different ports"),
        (&["--set", "checkpoints.url=/tmp"], "write file:///directory or s3://bucket/prefix"),
        (&["--set", "telemetry.log=info,=,"], "telemetry.log"),
        (&["--set", "kafka.settings.enable.auto.commit=true"], "enable.auto.commit"),
        (&["--config", "/nowhere.toml"], "cannot read the configuration file /nowhere.toml"),
    ];
    for (arguments, expected) in cases {
        for flag in [None, Some("--check-config"), Some("--print-config")] {
            let arguments: Vec<_> = arguments.iter().copied().chain(flag).collect();
            let (code, text) = printed(parse_with(&arguments, &[]));
            assert_eq!(code, 2, "{text}");
            assert!(
                text.starts_with("error: ") && text.contains(expected),
                "{arguments:?}: {text}"
            );
        }
    }
    assert_eq!(printed(parse_with(&["--check-config", "--print-config"], &[])).0, 2);
}

#[test]
fn printed_settings_can_be_read_again_and_keep_secrets_to_themselves() {
    let environment = [
        ("HEADWATER_INGEST__MAX_EVENTS", "5"),
        ("HEADWATER_QUERY__X", "1"),
        ("HEADWATER_KAFKA__SETTINGS__SASL_PASSWORD", "hunter2"),
    ];
    let arguments = [
        "--print-config",
        "--set",
        "kafka.settings.ssl.key.password=hunter2",
        "--set",
        "kafka.settings.sasl.oauthbearer.client.secret=hunter2",
        "--set",
        "kafka.settings.ssl.key.pem=hunter2",
        "--set",
        "kafka.settings.sasl.username=alice",
    ];

    let (code, text) = printed(parse_with(&arguments, &environment));

    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(text.matches("\"***\"").count(), 4, "{text}");
    assert!(text.contains("max-events = 5") && text.contains("alice"), "{text}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &text).unwrap();
    let arguments = ["--print-config", "--config", file.path().to_str().unwrap()];
    assert_eq!(printed(parse_with(&arguments, &[])), (0, text));
}

#[test]
fn a_setting_of_librdkafka_is_one_however_a_file_spells_it() {
    let spellings = [
        "[kafka.settings]\nsasl.username = 'file'",
        "[kafka.settings]\n'sasl.username' = 'file'",
        "[kafka.settings]\nsasl-username = 'file'",
        "[kafka]\nsettings.sasl.username = 'file'",
    ];
    for text in spellings {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let arguments = ["--print-config", "--config", file.path().to_str().unwrap()];
        let environment = [("HEADWATER_KAFKA__SETTINGS__SASL_USERNAME", "environment")];
        let (code, alone) = printed(parse_with(&arguments, &[]));
        assert!(code == 0 && alone.contains("sasl-username = \"file\""), "{text}: {alone}");
        let (code, above) = printed(parse_with(&arguments, &environment));
        assert!(code == 0 && above.contains("sasl-username = \"environment\""), "{text}: {above}");
        assert!(!above.contains("\"file\""), "{text}: {above}");
    }
}

#[test]
fn a_line_with_a_secret_is_not_shown() {
    for text in [
        "[kafka.settings]\n'sasl.password' = 'hunter2",
        "[kafka.settings]\nsasl.password = ['hunter2']",
        "[kafka.settings]\nssl-key-password = 1979-hunter2",
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let arguments = ["--check-config", "--config", file.path().to_str().unwrap()];
        let (code, said) = printed(parse_with(&arguments, &[]));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("line 2") && !said.contains("hunter2"), "{said}");
    }
}

#[test]
fn a_health_check_says_what_the_process_says() {
    let answer_with = |answer: &'static str| {
        let listener = StdListener::bind("0.0.0.0:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            let read = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request[..read].to_vec()).unwrap()
        });
        let flag = format!("server.http={address}");
        let Invocation::HealthCheck(http) = parse_with(&["--health-check", "--set", &flag], &[])
        else {
            panic!("it asks")
        };
        // All addresses: it is asked on the loopback.
        let answered = health_check(http);
        assert!(server.join().unwrap().starts_with("GET /readyz HTTP/1.0\r\n"));
        answered
    };

    let ready = answer_with("HTTP/1.0 200 OK\r\ncontent-length: 6\r\n\r\nready\n");
    assert_eq!(ready, Ok("ready\n".to_owned()));
    let unready = answer_with("HTTP/1.0 503 Service Unavailable\r\n\r\nnot ready\n  log: away\n");
    assert_eq!(unready, Err("not ready\n  log: away\n".to_owned()));

    let nobody = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(health_check(nobody).unwrap_err().starts_with("no answer from"));
    let (code, text) = printed(parse_with(&["--health-check", "--set", "nonsense.x=1"], &[]));
    assert_eq!(code, 1, "2 has a meaning of its own to those who check health: {text}");
}
