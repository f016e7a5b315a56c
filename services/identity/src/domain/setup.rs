//! What a cloud has to know so that it trusts an identity's tokens: what its parts are called there, and what stands in
//! the way.

use model::trust::IssuerUrl;

use super::aws::RoleArn;
use super::google::Provider;
use super::managed_identity::Configuration;

/// Why a cloud would not take our tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// No cloud fetches keys in the clear.
    #[error(
        "the issuer's URL is not an https URL: no cloud takes its tokens; set THARSIS_ISSUER_URL to one that the cloud can \
         reach"
    )]
    NotHttps,
    /// <https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateOpenIDConnectProvider.html>
    #[error(
        "the issuer's URL has a port number: AWS takes no such provider; set THARSIS_ISSUER_URL to one without"
    )]
    Port,
    /// The same page.
    #[error("the issuer's URL is longer than the 255 characters that AWS takes")]
    LongForAws,
    /// As a trust policy may name it.
    #[error(
        "the issuer's URL is none that a trust policy takes: an https URL, or http on a loopback address, of at most 255 bytes"
    )]
    NotForTrustPolicies,
}

/// The characters of a provider's URL.
const AWS_URL: usize = 255;

/// What stands in the way of the identity's tokens in their cloud. The rest of the clouds' limits is kept where a value
/// is read: Azure's 600 characters by the issuer's URL and the audience, Google's 127 bytes of a subject by the ids.
#[must_use]
pub fn warnings(issuer_url: &str, configuration: &Configuration) -> Vec<Warning> {
    let mut warnings = Vec::new();
    // Keys that we fetch ourselves.
    if matches!(configuration, Configuration::Tharsis { .. }) {
        let nameable: Result<IssuerUrl, _> = issuer_url.parse();
        if nameable.is_err() {
            warnings.push(Warning::NotForTrustPolicies);
        }
        return warnings;
    }
    if !issuer_url.starts_with("https://") {
        warnings.push(Warning::NotHttps);
    }
    if matches!(configuration, Configuration::Aws { .. }) {
        let (authority, _) = without_scheme(issuer_url)
            .split_once('/')
            .unwrap_or((without_scheme(issuer_url), ""));
        // Behind an IPv6 address's bracket, or of a name or an IPv4 address.
        let after_address = authority
            .rsplit_once(']')
            .map_or(authority, |(_, rest)| rest);
        if after_address.contains(':') {
            warnings.push(Warning::Port);
        }
        if issuer_url.len() > AWS_URL {
            warnings.push(Warning::LongForAws);
        }
    }
    warnings
}

/// The issuer as AWS names it in providers and conditions: host and path.
#[must_use]
pub fn without_scheme(issuer_url: &str) -> &str {
    issuer_url
        .split_once("://")
        .map_or(issuer_url, |(_, rest)| rest)
}

/// The ARN of the OIDC provider in a role's account and partition.
#[must_use]
pub fn provider_arn(role: &RoleArn, issuer_url: &str) -> String {
    format!(
        "arn:{}:iam::{}:oidc-provider/{}",
        role.partition(),
        role.account(),
        without_scheme(issuer_url)
    )
}

/// How a workload identity pool names the subject of a token
/// (<https://cloud.google.com/iam/docs/principal-identifiers>).
#[must_use]
pub fn pool_principal(provider: &Provider, subject: &str) -> String {
    format!(
        "principal://iam.googleapis.com/projects/{}/locations/global/workloadIdentityPools/{}/subject/{subject}",
        provider.project(),
        provider.pool()
    )
}

/// The condition that a provider puts on tokens, in CEL: the subjects that it is for.
#[must_use]
pub fn pool_condition(subjects: &[String]) -> String {
    format!("assertion.sub in ['{}']", subjects.join("', '"))
}

/// What a cluster calls a subject of ours: no name of its own users starts so.
#[must_use]
pub fn user_name(subject: &str) -> String {
    format!("{USER_PREFIX}{subject}")
}

/// Of the users that are subjects of ours.
pub const USER_PREFIX: &str = "tharsis:";

#[cfg(test)]
mod tests {
    use super::*;

    fn aws() -> Configuration {
        Configuration::Aws {
            role: "arn:aws-cn:iam::123456789012:role/a/deployer"
                .parse()
                .expect("an arn"),
        }
    }

    fn kubernetes() -> Configuration {
        Configuration::Kubernetes {
            audience: "".parse().expect("an audience"),
        }
    }

    #[test]
    fn a_service_account_trusts_what_a_trust_policy_may_name() {
        let tharsis = Configuration::Tharsis {
            account: model::ServiceAccountId::from_uuid(uuid::Uuid::from_u128(1)),
        };
        for (url, warned) in [
            ("https://tharsis.example.com/oidc", vec![]),
            ("http://127.0.0.1:7105", vec![]),
            (
                "http://tharsis.example.com",
                vec![Warning::NotForTrustPolicies],
            ),
        ] {
            assert_eq!(warnings(url, &tharsis), warned, "{url}");
        }
    }

    #[test]
    fn what_a_cloud_would_not_take_is_said() {
        let long = format!("https://example.com/{}", "a".repeat(300));
        for (url, of_aws, of_kubernetes) in [
            ("https://tharsis.example.com/oidc", vec![], vec![]),
            (
                "http://127.0.0.1:7105",
                vec![Warning::NotHttps, Warning::Port],
                vec![Warning::NotHttps],
            ),
            ("https://example.com:8443/a", vec![Warning::Port], vec![]),
            ("https://[2001:db8::1]/a:b", vec![], vec![]),
            ("https://[2001:db8::1]:443", vec![Warning::Port], vec![]),
            (&long, vec![Warning::LongForAws], vec![]),
        ] {
            assert_eq!(warnings(url, &aws()), of_aws, "{url}");
            assert_eq!(warnings(url, &kubernetes()), of_kubernetes, "{url}");
        }
    }

    #[test]
    fn a_provider_is_in_the_partition_of_its_role() {
        let Configuration::Aws { role } = aws() else {
            panic!("a role")
        };
        assert_eq!(
            provider_arn(&role, "https://tharsis.example.com/oidc"),
            "arn:aws-cn:iam::123456789012:oidc-provider/tharsis.example.com/oidc"
        );
    }
}
