//! Typed ids in `TypeID` form: a prefix that names the type, and a `UUIDv7` in base32 (<https://github.com/jetify-com/typeid>).

use std::fmt;
use std::str::FromStr;

use type_safe_id::{StaticType, TypeSafeId};

/// The text is not an id of the expected type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be the id of a resource, such as mi_…")]
pub struct InvalidId;

macro_rules! ids {
    ($($marker:ident $id:ident $prefix:literal $trn:literal;)*) => {
        $(
            #[doc = concat!("Marks the ids that start with `", $prefix, "_`.")]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $marker;

            impl StaticType for $marker {
                const TYPE: &'static str = $prefix;
            }

            #[doc = concat!("`", $prefix, "_…`.")]
            pub type $id = TypeSafeId<$marker>;

            impl From<$id> for ResourceId {
                fn from(id: $id) -> Self {
                    Self::$marker(id)
                }
            }

            impl TryFrom<ResourceId> for $id {
                type Error = InvalidId;

                fn try_from(id: ResourceId) -> Result<Self, InvalidId> {
                    match id {
                        ResourceId::$marker(id) => Ok(id),
                        _ => Err(InvalidId),
                    }
                }
            }
        )*

        /// The id of any resource.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ResourceId {
            $(#[doc = concat!("`", $prefix, "_…`.")] $marker($id),)*
        }

        /// The type of a resource, as a TRN names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = concat!("`trn:", $trn, ":…`.")] $marker,)*
        }

        impl ResourceId {
            /// The type of the resource.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$marker(_) => Kind::$marker,)*
                }
            }
        }

        impl fmt::Display for ResourceId {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$marker(id) => id.fmt(f),)*
                }
            }
        }

        impl FromStr for ResourceId {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let (prefix, _) = text.rsplit_once('_').ok_or(InvalidId)?;
                match prefix {
                    $($prefix => text.parse().map(Self::$marker).map_err(|_| InvalidId),)*
                    _ => Err(InvalidId),
                }
            }
        }

        impl Kind {
            /// The word in a TRN.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$marker => $trn,)*
                }
            }

            /// What ids start with, before the underscore.
            #[must_use]
            pub fn prefix(self) -> &'static str {
                match self {
                    $(Self::$marker => $prefix,)*
                }
            }
        }

        impl FromStr for Kind {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                match text {
                    $($trn => Ok(Self::$marker),)*
                    _ => Err(InvalidId),
                }
            }
        }
    };
}

ids! {
    Group GroupId "grp" "group";
    Workspace WorkspaceId "ws" "workspace";
    Membership MembershipId "mbr" "membership";
    ManagedIdentity ManagedIdentityId "mi" "managed_identity";
    SigningKey SigningKeyId "key" "signing_key";
    Job JobId "job" "job";
    AccessRule AccessRuleId "rule" "access_rule";
    Team TeamId "team" "team";
    Mask MaskId "mask" "mask";
    ServiceAccount ServiceAccountId "sa" "service_account";
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A place that holds memberships: a group or a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceId {
    /// A group.
    Group(GroupId),
    /// A workspace.
    Workspace(WorkspaceId),
}

impl From<NamespaceId> for ResourceId {
    fn from(id: NamespaceId) -> Self {
        match id {
            NamespaceId::Group(id) => id.into(),
            NamespaceId::Workspace(id) => id.into(),
        }
    }
}

impl TryFrom<ResourceId> for NamespaceId {
    type Error = InvalidId;

    fn try_from(id: ResourceId) -> Result<Self, InvalidId> {
        match id {
            ResourceId::Group(id) => Ok(Self::Group(id)),
            ResourceId::Workspace(id) => Ok(Self::Workspace(id)),
            _ => Err(InvalidId),
        }
    }
}

impl fmt::Display for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ResourceId::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_reads_back_as_its_own_type_only(bits: u128) {
            let id = ManagedIdentityId::from_uuid(uuid::Uuid::from_u128(bits));
            let text = id.to_string();
            prop_assert!(text.starts_with("mi_"));
            prop_assert_eq!(text.parse::<ManagedIdentityId>().ok(), Some(id));
            prop_assert_eq!(text.parse::<ResourceId>(), Ok(ResourceId::from(id)));
            prop_assert!(text.parse::<GroupId>().is_err());
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,64}") {
            let _ = text.parse::<ResourceId>();
        }
    }
}
