//! What AWS accepts.

use std::fmt;
use std::str::FromStr;

/// The ARN of an IAM role:
/// `arn:<partition>:iam::<account>:role/<path and name>`
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleArn(String);

/// The text is not a [`RoleArn`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoleArn {
    /// Not six parts, or not those of a role.
    #[error("must have the form arn:aws:iam::123456789012:role/name")]
    Form,
    /// An unknown partition.
    #[error("the partition must be one of {}", PARTITIONS.join(", "))]
    Partition,
    /// The account is not 12 digits.
    #[error("the account must be 12 digits")]
    Account,
    /// The path or the name of the role.
    #[error(
        "the role's name must be 1 to 64 of letters, digits and +=,.@_-, its path at most 512 printable characters"
    )]
    Role,
}

/// The partitions with an IAM of their own.
const PARTITIONS: [&str; 3] = ["aws", "aws-cn", "aws-us-gov"];

impl FromStr for RoleArn {
    type Err = InvalidRoleArn;

    fn from_str(text: &str) -> Result<Self, InvalidRoleArn> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let ["arn", partition, "iam", "", account, resource] = parts[..] else {
            return Err(InvalidRoleArn::Form);
        };
        if !PARTITIONS.contains(&partition) {
            return Err(InvalidRoleArn::Partition);
        }
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidRoleArn::Account);
        }
        let role = resource.strip_prefix("role/").ok_or(InvalidRoleArn::Form)?;
        let (path, name) = role.rsplit_once('/').unwrap_or(("", role));
        let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
        let name_valid = (1..=64).contains(&name.len()) && name.bytes().all(in_name);
        let path_valid = path.len() <= 510 && path.bytes().all(|byte| byte.is_ascii_graphic());
        if name_valid && path_valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidRoleArn::Role)
        }
    }
}

impl RoleArn {
    /// `aws`, `aws-cn`, `aws-us-gov`.
    #[must_use]
    pub fn partition(&self) -> &str {
        self.part(1)
    }

    /// 12 digits.
    #[must_use]
    pub fn account(&self) -> &str {
        self.part(4)
    }

    /// The path and the name of the role: `/` and `deployer`, `/team/` and `deployer`.
    #[must_use]
    pub fn path_and_name(&self) -> (&str, &str) {
        let role = self.part(5).strip_prefix("role").unwrap_or_default();
        role.split_at(role.rfind('/').map_or(0, |slash| slash + 1))
    }

    fn part(&self, number: usize) -> &str {
        self.0.splitn(6, ':').nth(number).unwrap_or_default()
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_arn() {
        let parts = |text: &str| {
            let arn: RoleArn = text.parse().expect("an arn");
            let (path, name) = arn.path_and_name();
            [arn.partition(), arn.account(), path, name].map(str::to_owned)
        };
        assert_eq!(
            parts("arn:aws-cn:iam::123456789012:role/a/b/Deployer"),
            ["aws-cn", "123456789012", "/a/b/", "Deployer"]
        );
        assert_eq!(
            parts("arn:aws:iam::123456789012:role/x"),
            ["aws", "123456789012", "/", "x"]
        );
    }

    #[test]
    fn arns() {
        for good in [
            "arn:aws:iam::123456789012:role/deployer",
            "arn:aws-cn:iam::123456789012:role/a/b/Deployer+=,.@_-1",
            "arn:aws-us-gov:iam::000000000000:role/x",
        ] {
            assert_eq!(
                good.parse::<RoleArn>().map(|arn| arn.to_string()),
                Ok(good.to_owned())
            );
        }
        let long = format!("arn:aws:iam::123456789012:role/{}", "a".repeat(65));
        for (bad, why) in [
            ("", InvalidRoleArn::Form),
            ("arn:aws:iam::123456789012:user/alice", InvalidRoleArn::Form),
            ("arn:aws:s3:::bucket", InvalidRoleArn::Form),
            (
                "arn:aws:iam:us-east-1:123456789012:role/x",
                InvalidRoleArn::Form,
            ),
            (
                "arn:azure:iam::123456789012:role/x",
                InvalidRoleArn::Partition,
            ),
            ("arn:aws:iam::12345678901:role/x", InvalidRoleArn::Account),
            ("arn:aws:iam::12345678901a:role/x", InvalidRoleArn::Account),
            ("arn:aws:iam::123456789012:role/", InvalidRoleArn::Role),
            ("arn:aws:iam::123456789012:role/a b", InvalidRoleArn::Role),
            ("arn:aws:iam::123456789012:role/ä", InvalidRoleArn::Role),
            (&long, InvalidRoleArn::Role),
        ] {
            assert_eq!(bad.parse::<RoleArn>(), Err(why), "{bad}");
        }
    }
}
