//! The contract between the services: gRPC messages and services, control records and statuses,
//! generated from `proto/` at build time, and their conversions to and from `headwater-types`.

pub mod convert;
pub mod headers;

/// The descriptors of every service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! package {
    ($($name:ident = $package:literal),* $(,)?) => {$(
        #[allow(clippy::all, clippy::wildcard_enum_match_arm, missing_docs, unreachable_pub, reason = "generated")]
        pub mod $name {
            pub mod v1 {
                tonic::include_proto!($package);
            }
        }
    )*};
}

package! {
    common = "headwater.common.v1",
    control = "headwater.control.v1",
    ingest = "headwater.ingest.v1",
    query = "headwater.query.v1",
    status = "headwater.status.v1",
}
