//! The wire: the services' protobuf contracts as Rust types, and the descriptors that reflection and the
//! authorization layer read. No logic.

#![allow(clippy::allow_attributes, reason = "generated code carries its own")]

/// The encoded `FileDescriptorSet` of every contract, with its options.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Why a recorded event could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// This build does not know the type: a newer writer, or another log.
    #[error("unknown event type {0}")]
    Unknown(String),
    /// The payload is not a message of its type.
    #[error("malformed payload")]
    Malformed(#[from] prost::DecodeError),
}

// The generated modules name each other by their package's path.
macro_rules! packages {
    ($($module:ident $package:literal $($events:literal)?;)*) => { $(
        #[doc = concat!("`", $package, "`.")]
        #[allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated")]
        pub mod $module {
            #[allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated")]
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/", $package, ".rs"));
                $(include!(concat!(env!("OUT_DIR"), "/", $events));)?
            }
        }
    )* };
}

packages! {
    access "tharsis.access.v1";
    eventlog "tharsis.eventlog.v1";
    namespace "tharsis.namespace.v1" "tharsis.namespace.v1.events.rs";
    identity "tharsis.identity.v1" "tharsis.identity.v1.events.rs";
    issuer "tharsis.issuer.v1" "tharsis.issuer.v1.events.rs";
    directory "tharsis.directory.v1";
}
