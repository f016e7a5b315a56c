//! What Google Cloud accepts.

use std::fmt;
use std::str::FromStr;

/// The resource name of a workload identity pool provider:
/// `projects/<number>/locations/global/workloadIdentityPools/<pool>/providers/<provider>`
/// (<https://cloud.google.com/iam/docs/reference/rest/v1/projects.locations.workloadIdentityPools.providers>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider(String);

/// The text is not a [`Provider`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProvider {
    /// Not the parts of such a name.
    #[error(
        "must have the form projects/<number>/locations/global/workloadIdentityPools/<pool>/providers/<provider>"
    )]
    Form,
    /// The project's id instead of its number.
    #[error("the project must be given by its number, 1 to 19 digits: tokens name it so")]
    Project,
    /// The id of the pool or of the provider.
    #[error(
        "the ids of pool and provider must be 4 to 32 of lower-case letters, digits and -, and not start with gcp-"
    )]
    Id,
}

impl FromStr for Provider {
    type Err = InvalidProvider;

    fn from_str(text: &str) -> Result<Self, InvalidProvider> {
        let parts: Vec<&str> = text.splitn(8, '/').collect();
        let [
            "projects",
            project,
            "locations",
            "global",
            "workloadIdentityPools",
            pool,
            "providers",
            provider,
        ] = parts[..]
        else {
            return Err(InvalidProvider::Form);
        };
        let number =
            (1..=19).contains(&project.len()) && project.bytes().all(|byte| byte.is_ascii_digit());
        if !number {
            return Err(InvalidProvider::Project);
        }
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let valid = |id: &str| {
            (4..=32).contains(&id.len()) && id.bytes().all(allowed) && !id.starts_with("gcp-")
        };
        if valid(pool) && valid(provider) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidProvider::Id)
        }
    }
}

impl Provider {
    /// The project's number.
    #[must_use]
    pub fn project(&self) -> &str {
        self.part(1)
    }

    /// The id of the pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        self.part(5)
    }

    /// The id of the provider in the pool.
    #[must_use]
    pub fn id(&self) -> &str {
        self.part(7)
    }

    fn part(&self, number: usize) -> &str {
        self.0.split('/').nth(number).unwrap_or_default()
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The email of a service account: `<name>@<project>.iam.gserviceaccount.com`, or one of those that Google makes
/// (<https://cloud.google.com/iam/docs/service-account-types>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount(String);

/// The text is not a [`ServiceAccount`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be the email of a service account: name@project.iam.gserviceaccount.com")]
pub struct InvalidServiceAccount;

impl FromStr for ServiceAccount {
    type Err = InvalidServiceAccount;

    fn from_str(text: &str) -> Result<Self, InvalidServiceAccount> {
        let (name, domain) = text.split_once('@').ok_or(InvalidServiceAccount)?;
        let project = domain.strip_suffix(".gserviceaccount.com");
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        let part = |part: &str| (1..=128).contains(&part.len()) && part.bytes().all(allowed);
        if part(name) && project.is_some_and(part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidServiceAccount)
        }
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers() {
        let named = |project: &str, pool: &str, provider: &str| {
            format!(
                "projects/{project}/locations/global/workloadIdentityPools/{pool}/providers/{provider}"
            )
        };
        for (text, expected) in [
            (named("123456789012", "tharsis", "main"), Ok(())),
            (
                named("my-project", "tharsis", "main"),
                Err(InvalidProvider::Project),
            ),
            (named("", "tharsis", "main"), Err(InvalidProvider::Project)),
            (named("1", "abc", "main"), Err(InvalidProvider::Id)),
            (named("1", "gcp-pool", "main"), Err(InvalidProvider::Id)),
            (named("1", "tharsis", "Main"), Err(InvalidProvider::Id)),
            (named("1", "tharsis", "main/more"), Err(InvalidProvider::Id)),
            (
                named("1", "tharsis", &"a".repeat(33)),
                Err(InvalidProvider::Id),
            ),
            (
                format!("//iam.googleapis.com/{}", named("1", "tharsis", "main")),
                Err(InvalidProvider::Form),
            ),
            (String::new(), Err(InvalidProvider::Form)),
        ] {
            assert_eq!(text.parse::<Provider>().map(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn service_accounts() {
        for good in [
            "deployer@my-project.iam.gserviceaccount.com",
            "123456789012-compute@developer.gserviceaccount.com",
        ] {
            assert!(good.parse::<ServiceAccount>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "deployer",
            "deployer@example.com",
            "@my-project.iam.gserviceaccount.com",
            "a b@my-project.iam.gserviceaccount.com",
            "a@b@my-project.iam.gserviceaccount.com",
            "a@.gserviceaccount.com",
        ] {
            assert_eq!(
                bad.parse::<ServiceAccount>(),
                Err(InvalidServiceAccount),
                "{bad}"
            );
        }
    }
}
