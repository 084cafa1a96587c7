//! Log lines to stderr, and traces to a collector if one is configured.

use std::time::Duration;

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::Directive, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// The form of log lines.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line, for machines.
    Json,
}

/// `[telemetry]`: log lines and traces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TelemetryConfig {
    /// Which log lines are written, in the syntax of `RUST_LOG`: a level, then exceptions by
    /// target.
    ///
    /// `debug` is for finding one fault; on a busy node it costs throughput.
    pub log: String,

    pub log_format: LogFormat,

    /// The OTLP endpoint (gRPC) of a trace collector, such as `http://127.0.0.1:4317`. Without one,
    /// no exporter is started and spans cost next to nothing.
    pub otlp_endpoint: Option<String>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: "info".into(), log_format: LogFormat::Text, otlp_endpoint: None }
    }
}

/// Added to every filter that does not name `object_store`: that client logs each try of each
/// request, while the caller logs the outcome once.
const QUIET: &str = "object_store=warn";

impl TelemetryConfig {
    /// Refuses what [`init`] would refuse, without starting anything.
    ///
    /// # Errors
    ///
    /// A setting that does not parse.
    pub fn check(&self) -> Result<(), Error> {
        self.filter()?;
        match &self.otlp_endpoint {
            Some(endpoint) => check_endpoint(endpoint),
            None => Ok(()),
        }
    }

    fn filter(&self) -> Result<EnvFilter, Error> {
        let refuse = |reason: String| Error::Filter { filter: self.log.clone(), reason };
        let filter =
            EnvFilter::builder().parse(&self.log).map_err(|error| refuse(error.to_string()))?;
        if self.log.contains("object_store") {
            return Ok(filter);
        }
        let quiet = QUIET.parse::<Directive>().map_err(|error| refuse(error.to_string()))?;
        Ok(filter.add_directive(quiet))
    }
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "telemetry.log {filter:?} is not a filter ({reason}); write a level such as info, or info,headwater_log=debug"
    )]
    Filter { filter: String, reason: String },

    #[error(
        "telemetry.otlp-endpoint {endpoint:?} cannot be used ({reason}); write a URL such as http://127.0.0.1:4317"
    )]
    Endpoint { endpoint: String, reason: String },

    #[error("telemetry was started before in this process")]
    Started,
}

/// Telemetry while it runs. Flush it at the end with [`Telemetry::shutdown`].
#[derive(Debug)]
#[must_use = "traces that are still buffered are lost unless `shutdown` is called"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Whether traces are exported.
    pub fn exports(&self) -> bool {
        self.provider.is_some()
    }

    /// Sends buffered traces, for a few seconds at most. It blocks: call it from a thread that may,
    /// or when nothing else is left to do.
    pub fn shutdown(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(Duration::from_secs(5))
        {
            tracing::warn!(%error, "traces could not all be delivered");
        }
    }
}

/// Starts logging, and the export of traces if an endpoint is configured, for the whole process.
///
/// `service` and `instance` become `service.name` and `service.instance.id` of the traces. If an
/// endpoint is configured, call this inside a tokio runtime.
///
/// # Errors
///
/// A setting that does not parse, or a second call.
pub fn init(config: &TelemetryConfig, service: &str, instance: &str) -> Result<Telemetry, Error> {
    let filter = config.filter()?;
    let provider = match &config.otlp_endpoint {
        Some(endpoint) => Some(exporter(endpoint, service, instance)?),
        None => None,
    };
    let traces = provider.as_ref().map(|provider| {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        tracing_opentelemetry::layer().with_tracer(provider.tracer("headwater"))
    });
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.log_format {
        LogFormat::Text => {
            lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(traces)
        .with(lines)
        .try_init()
        .map_err(|_| Error::Started)?;
    Ok(Telemetry { provider })
}

fn check_endpoint(endpoint: &str) -> Result<(), Error> {
    if endpoint.starts_with("http://") || endpoint.starts_with("https://") {
        return Ok(());
    }
    let reason = "it has no http:// or https:// scheme".into();
    Err(Error::Endpoint { endpoint: endpoint.to_owned(), reason })
}

fn exporter(endpoint: &str, service: &str, instance: &str) -> Result<SdkTracerProvider, Error> {
    let wrong = |reason: String| Error::Endpoint { endpoint: endpoint.to_owned(), reason };
    check_endpoint(endpoint)?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    let resource = Resource::builder()
        .with_service_name(format!("headwater-{service}"))
        .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_endpoint_nothing_is_exported_and_a_second_start_is_refused() {
        let telemetry = init(&TelemetryConfig::default(), "test", "1").unwrap();
        assert!(!telemetry.exports());
        assert!(matches!(init(&TelemetryConfig::default(), "test", "1"), Err(Error::Started)));
        telemetry.shutdown();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_buffered_is_sent_to_the_collector_at_shutdown() {
        use opentelemetry::trace::Tracer as _;
        use tokio::io::AsyncReadExt as _;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let provider = exporter(&endpoint, "test", "1").unwrap();
        provider.tracer("headwater").in_span("append", |_| ());
        let shutdown =
            tokio::task::spawn_blocking(|| Telemetry { provider: Some(provider) }.shutdown());

        let (mut connection, _) = listener.accept().await.unwrap();
        let mut preface = [0; 14];
        connection.read_exact(&mut preface).await.unwrap();

        assert_eq!(&preface, b"PRI * HTTP/2.0");
        drop((connection, listener));
        shutdown.await.unwrap();
    }

    #[test]
    fn the_object_store_client_logs_only_warnings_unless_the_filter_names_it() {
        let filter = |log: &str| {
            let config = TelemetryConfig { log: log.into(), ..TelemetryConfig::default() };
            config.filter().unwrap().to_string()
        };
        assert_eq!(filter("info"), "object_store=warn,info");
        assert!(!filter("info,object_store=info").contains("warn"));
    }

    #[test]
    fn settings_that_do_not_parse_are_named() {
        let config = TelemetryConfig { log: "info,=,".into(), ..TelemetryConfig::default() };
        let error = init(&config, "test", "1").unwrap_err().to_string();
        assert!(error.starts_with("telemetry.log \"info,=,\" is not a filter"), "{error}");
        let config = TelemetryConfig {
            otlp_endpoint: Some("localhost:4317".into()),
            ..TelemetryConfig::default()
        };
        let error = init(&config, "test", "1").unwrap_err().to_string();
        assert!(error.contains("no http:// or https:// scheme"), "{error}");
    }
}
