//! Compiles `proto/` without `protoc`, and keeps a descriptor set for gRPC reflection.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = [
        "headwater/common/v1/common.proto",
        "headwater/control/v1/catalog_service.proto",
        "headwater/control/v1/control_record.proto",
        "headwater/control/v1/replay_service.proto",
        "headwater/ingest/v1/ingest_service.proto",
        "headwater/query/v1/query_service.proto",
        "headwater/query/v1/shard_service.proto",
        "headwater/status/v1/shard_status.proto",
    ];
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".headwater.ingest.v1")
        .bytes(".headwater.query.v1.RowChunk")
        .bytes(".headwater.query.v1.ShardOpened")
        .compile_fds(descriptors)?;
    Ok(())
}
