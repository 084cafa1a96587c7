//! Kafka with logins and TLS, in the ways that people run it.

use std::ops::Deref;

use anyhow::Result;

use super::{
    broker::{Broker, Extras, Listener, SECRETS, SharedBroker, shared},
    container::Volume,
};

/// The listener for programs on this machine that log in by PLAIN or SCRAM-SHA-512, without TLS.
const LOGIN: &str = "LOGIN";
/// The listener for programs on this machine that log in by a token, without TLS.
const TOKENS: &str = "TOKENS";
/// The listener for containers: SCRAM-SHA-512 over TLS.
const SECURE: &str = "SECURE";

/// The password of the keys of this one broker; they never leave its container.
const KEYSTORE_PASSWORD: &str = "the-keys-of-a-test";

/// A [`Broker`] with further listeners, each of which wants a login. The listeners without one are
/// still there, for the broker itself and for Kafka's tools.
///
/// A user may do what was granted to it; the users in `masters` may do everything.
pub struct Secured {
    broker: Broker,
    secrets: Volume,
}

impl Secured {
    /// Starts one. `plain` are the users that PLAIN knows, with their passwords; those of SCRAM
    /// come and go with [`Secured::user`]. A token must have the scope `kafka`.
    pub async fn start(plain: &[(&str, &str)], masters: &[&str]) -> Result<Self> {
        let secrets = Volume::create("secrets").await?;
        let listener = |name, protocol, port, on_host| Listener { name, protocol, port, on_host };
        let users: String =
            plain.iter().map(|(user, password)| format!(" user_{user}=\"{password}\"")).collect();
        let masters: String = masters.iter().map(|user| format!(";User:{user}")).collect();
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let keystore = format!("{KEYS}/broker.p12");
        let settings = [
            ("LISTENER_NAME_LOGIN_SASL_ENABLED_MECHANISMS", "PLAIN,SCRAM-SHA-512"),
            (
                "LISTENER_NAME_LOGIN_PLAIN_SASL_JAAS_CONFIG",
                &format!(
                    "org.apache.kafka.common.security.plain.PlainLoginModule required{users};"
                ),
            ),
            ("LISTENER_NAME_LOGIN_SCRAM___SHA___512_SASL_JAAS_CONFIG", scram),
            ("LISTENER_NAME_SECURE_SASL_ENABLED_MECHANISMS", "SCRAM-SHA-512"),
            ("LISTENER_NAME_SECURE_SCRAM___SHA___512_SASL_JAAS_CONFIG", scram),
            ("LISTENER_NAME_SECURE_SSL_KEYSTORE_TYPE", "PKCS12"),
            ("LISTENER_NAME_SECURE_SSL_KEYSTORE_LOCATION", &keystore),
            ("LISTENER_NAME_SECURE_SSL_KEYSTORE_PASSWORD", KEYSTORE_PASSWORD),
            ("LISTENER_NAME_SECURE_SSL_KEY_PASSWORD", KEYSTORE_PASSWORD),
            ("LISTENER_NAME_TOKENS_SASL_ENABLED_MECHANISMS", "OAUTHBEARER"),
            // The broker checks no signature of a token: the tests are about how we get one.
            (
                "LISTENER_NAME_TOKENS_OAUTHBEARER_SASL_JAAS_CONFIG",
                "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
                 unsecuredLoginStringClaim_sub=\"broker\" unsecuredValidatorRequiredScope=\"kafka\";",
            ),
            ("AUTHORIZER_CLASS_NAME", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
            ("SUPER_USERS", &format!("User:ANONYMOUS{masters}")),
        ];
        let extras = Extras {
            listeners: vec![
                listener(LOGIN, "SASL_PLAINTEXT", 19_093, true),
                listener(TOKENS, "SASL_PLAINTEXT", 19_094, true),
                listener(SECURE, "SASL_SSL", 19_095, false),
            ],
            settings: settings
                .into_iter()
                .map(|(name, value)| (format!("KAFKA_{name}"), value.to_owned()))
                .collect(),
            before: Some(make_keys()),
            secrets: Some(secrets.clone()),
        };
        Ok(Self { broker: Broker::start_beside(&extras).await?, secrets })
    }

    /// The address for programs on this machine that log in by PLAIN or SCRAM-SHA-512, without TLS.
    pub fn login(&self) -> String {
        self.broker.address(LOGIN)
    }

    /// The address for programs on this machine that log in by a token (OAUTHBEARER), without TLS.
    pub fn tokens(&self) -> String {
        self.broker.address(TOKENS)
    }

    /// The address for containers, which log in by SCRAM-SHA-512 over TLS. The certificate is made
    /// out to this name only.
    pub fn secure(&self) -> String {
        self.broker.address(SECURE)
    }

    /// The same listener under a name to which its certificate is not made out.
    pub async fn secure_by_another_name(&self) -> Result<String> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let ip = super::docker(&["inspect", "--format", format, self.broker.name()]).await?;
        let secure = self.secure();
        let port = secure.rsplit(':').next().unwrap_or_default();
        Ok(format!("{ip}:{port}"))
    }

    /// A directory with `ca.pem`, by which the broker's certificate is trusted, and `other.pem`, by
    /// which it is not.
    pub fn authorities(&self) -> &Volume {
        &self.secrets
    }

    /// Creates a user for SCRAM, or changes the password of one.
    pub async fn user(&self, name: &str, password: &str) -> Result<()> {
        let credentials = format!("SCRAM-SHA-512=[iterations=4096,password={password}]");
        let user = ["--entity-type", "users", "--entity-name", name];
        let change = ["--alter", "--add-config", &credentials];
        self.broker.exec("kafka-configs", &[&change[..], &user].concat()).await.map(drop)
    }

    /// Lets a user do something: `["--topic", "orders"]`, `["Read", "Describe"]`.
    pub async fn allow(&self, user: &str, what: &[&str], operations: &[&str]) -> Result<()> {
        let principal = format!("User:{user}");
        let mut arguments = vec!["--add", "--allow-principal", &principal];
        arguments.extend(what);
        for operation in operations {
            arguments.extend(["--operation", operation]);
        }
        self.broker.exec("kafka-acls", &arguments).await.map(drop)
    }
}

impl Deref for Secured {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        &self.broker
    }
}

/// The one that the tests of one binary share, as [`super::shared_broker`] is.
pub struct SharedSecured {
    secured: &'static Secured,
    _log: SharedBroker,
}

/// Starts it for the first test that asks.
pub async fn shared_secured(plain: &[(&str, &str)], masters: &[&str]) -> Result<SharedSecured> {
    static SHARED: tokio::sync::OnceCell<Secured> = tokio::sync::OnceCell::const_new();
    let secured = SHARED.get_or_try_init(|| Secured::start(plain, masters)).await?;
    Ok(SharedSecured { secured, _log: shared(&secured.broker).await? })
}

impl Deref for SharedSecured {
    type Target = Secured;

    fn deref(&self) -> &Secured {
        self.secured
    }
}

/// The directory of the keys in the container.
const KEYS: &str = "/tmp/keys";

/// An authority, the broker's key with a certificate of it, and an authority that has nothing to do
/// with them.
fn make_keys() -> String {
    format!(
        r#"
if [ ! -d {KEYS} ]; then
  mkdir -m 700 {KEYS}.part
  cd {KEYS}.part
  tool() {{
    keytool -J-XX:TieredStopAtLevel=1 -J-Xmx64m "$@" -storetype PKCS12 -storepass {KEYSTORE_PASSWORD} 2>>log ||
      {{ cat log; exit 1; }}
  }}
  key() {{ tool -genkeypair -keyalg EC -groupname secp256r1 -validity 30 -alias "$1" -keystore "$1.p12" -dname "$2" "${{@:3}}"; }}
  key ca CN=Authority -ext bc:c
  key other CN=Other -ext bc:c
  key broker "CN=$NAME"
  tool -certreq -alias broker -keystore broker.p12 -file request
  tool -gencert -rfc -alias ca -keystore ca.p12 -infile request -outfile broker.pem -validity 30 -ext "san=dns:$NAME"
  for one in ca other; do tool -exportcert -rfc -alias $one -keystore $one.p12 -file {SECRETS}/$one.pem; done
  tool -importcert -noprompt -alias ca -keystore broker.p12 -file {SECRETS}/ca.pem
  tool -importcert -noprompt -alias broker -keystore broker.p12 -file broker.pem
  chmod a+r {SECRETS}/*.pem
  cd /
  mv {KEYS}.part {KEYS}
fi
"#
    )
}
