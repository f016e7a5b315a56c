//! Every type of managed identity: what is kept of its configuration, and what its tokens say.

use e2e::refusal::invalid;
use e2e::user::{aws, aws_identity, credential};
use e2e::{User, World, relying_party};
use proto::identity::v1::configuration::Type;
use proto::identity::v1::setup_instructions::Cloud;
use proto::identity::v1::{
    AzureConfiguration, Configuration, GetSetupInstructionsRequest, GoogleConfiguration,
    KubernetesConfiguration, ManagedIdentity, UpdateManagedIdentityRequest,
};
use tonic::Status;

const CLIENT: &str = "11111111-2222-3333-4444-555555555555";
const TENANT: &str = "66666666-7777-8888-9999-AAAAAAAAAAAA";
const PROVIDER: &str =
    "projects/123456789012/locations/global/workloadIdentityPools/tharsis/providers/main";

fn azure(audience: &str) -> Type {
    Type::Azure(AzureConfiguration {
        client_id: CLIENT.to_owned(),
        tenant_id: TENANT.to_owned(),
        audience: audience.to_owned(),
    })
}

fn google(service_account: &str) -> Type {
    Type::Google(GoogleConfiguration {
        workload_identity_provider: PROVIDER.to_owned(),
        service_account: service_account.to_owned(),
    })
}

fn kubernetes(audience: &str) -> Type {
    Type::Kubernetes(KubernetesConfiguration {
        audience: audience.to_owned(),
    })
}

async fn makes(alice: &User, path: &str, configuration: Type) -> Result<ManagedIdentity, Status> {
    let mut request = aws_identity(path);
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.configuration = Some(Configuration {
        r#type: Some(configuration),
    });
    let made = alice.asks(request).await?;
    Ok(made.managed_identity.expect("the identity"))
}

async fn updates(alice: &User, id: &str, configuration: Type) -> Result<ManagedIdentity, Status> {
    let update = UpdateManagedIdentityRequest {
        managed_identity: Some(ManagedIdentity {
            id: id.to_owned(),
            configuration: Some(Configuration {
                r#type: Some(configuration),
            }),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["configuration".to_owned()],
        }),
        ..Default::default()
    };
    let updated = alice.asks(update).await?;
    Ok(updated.managed_identity.expect("the identity"))
}

fn configuration(identity: &ManagedIdentity) -> Option<&Type> {
    identity.configuration.as_ref()?.r#type.as_ref()
}

/// The identity's token, as its cloud verifies it.
async fn trusts(world: &World, job: &User, identity: &ManagedIdentity, audience: &str) {
    let issued = job.asks(credential(&identity.id)).await;
    let issued = issued.expect("a credential");
    let verified = relying_party::verify(&world.issuer_url(), audience, &issued.token).await;
    let claims = verified.expect("it verifies").claims;
    assert_eq!(claims["aud"], audience);
    assert_eq!(claims["sub"], identity.id.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_has_one_of_each_type_and_each_cloud_its_audience() {
    let world = World::start().await;
    let alice = world.admin();
    alice.creates_group("acme").await;
    let web = alice.creates_workspace("acme/web").await;
    let makes = async |path: &str, configuration| {
        let identity = makes(&alice, path, configuration).await;
        let identity = identity.expect("it is made");
        alice.assigns(&identity.id, &web.id).await;
        identity
    };
    let aws = alice.creates_identity("acme/aws").await;
    alice.assigns(&aws.id, &web.id).await;
    let azure_one = makes("acme/azure", azure("")).await;
    let google_one = makes("acme/google", google("")).await;
    let cluster = makes("acme/cluster", kubernetes("")).await;
    // As the clouds have it: the audience spelled out, the GUIDs in small letters.
    assert_eq!(
        configuration(&azure_one),
        Some(&Type::Azure(AzureConfiguration {
            client_id: CLIENT.to_owned(),
            tenant_id: TENANT.to_lowercase(),
            audience: "api://AzureADTokenExchange".to_owned(),
        }))
    );
    let job = alice.with_token(&alice.opens_job(&web.id).await.token);
    let at_google = format!("https://iam.googleapis.com/{PROVIDER}");
    for (identity, audience) in [
        (&aws, "aws"),
        (&azure_one, "api://AzureADTokenExchange"),
        (&google_one, at_google.as_str()),
        (&cluster, "kubernetes"),
    ] {
        trusts(&world, &job, identity, audience).await;
    }

    // What the cloud takes may change, and the next token says so.
    for (identity, changed, audience) in [
        (&azure_one, azure("api://tharsis"), "api://tharsis"),
        (&cluster, kubernetes("prod.example.com"), "prod.example.com"),
        (
            &google_one,
            google("deployer@acme.iam.gserviceaccount.com"),
            at_google.as_str(),
        ),
    ] {
        let updated = updates(&alice, &identity.id, changed).await;
        updated.expect("it is changed");
        trusts(&world, &job, identity, audience).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cloud_would_refuse_is_refused_with_the_field_named() {
    let world = World::start().await;
    let alice = world.admin();
    alice.creates_group("acme").await;
    let below = |field: &str| format!("managed_identity.configuration{field}");
    let wrong_azure = Type::Azure(AzureConfiguration {
        client_id: "deployer".to_owned(),
        tenant_id: String::new(),
        audience: "a".repeat(601),
    });
    let wrong_google = Type::Google(GoogleConfiguration {
        workload_identity_provider: PROVIDER.replace("123456789012", "acme"),
        service_account: "alice@example.com".to_owned(),
    });
    for (configuration, fields) in [
        (
            wrong_azure,
            &[".azure.client_id", ".azure.tenant_id", ".azure.audience"][..],
        ),
        (
            wrong_google,
            &[
                ".google.workload_identity_provider",
                ".google.service_account",
            ],
        ),
        (kubernetes("prod/main"), &[".kubernetes.audience"]),
    ] {
        let fields: Vec<String> = fields.iter().map(|field| below(field)).collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        invalid(makes(&alice, "acme/wrong", configuration).await, &fields);
    }
    let cluster = makes(&alice, "acme/cluster", kubernetes("")).await;
    let cluster = cluster.expect("it is made");
    // Its trust in the cloud is for that type of cloud.
    invalid(updates(&alice, &cluster.id, azure("")).await, &[&below("")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_setup_says_what_the_tokens_say() {
    let world = World::start().await;
    let alice = world.admin();
    alice.creates_group("acme").await;
    let web = alice.creates_workspace("acme/web").await;
    let job = alice.with_token(&alice.opens_job(&web.id).await.token);
    let aws = aws("arn:aws-cn:iam::123456789012:role/deployer").r#type;
    for (name, configuration) in [
        ("aws", aws.expect("aws")),
        ("azure", azure("api://tharsis")),
        ("google", google("")),
        ("cluster", kubernetes("prod")),
    ] {
        let mut request = aws_identity(&format!("acme/{name}"));
        let wanted = request.managed_identity.get_or_insert_default();
        wanted.configuration = Some(Configuration {
            r#type: Some(configuration),
        });
        let made = alice.asks(request).await.expect("it is made");
        let identity = made.managed_identity.expect("the identity");
        alice.assigns(&identity.id, &web.id).await;
        let request = GetSetupInstructionsRequest {
            id: identity.trn.clone(),
            ..Default::default()
        };
        let said = alice.asks(request).await.expect("instructions");
        let said = said.setup_instructions.expect("instructions");
        assert_eq!(said.issuer_url, world.issuer_url());
        assert_eq!(said.subjects, [identity.id.as_str()]);
        trusts(&world, &job, &identity, &said.audience).await;
        // No cloud reaches this issuer, and whoever makes an identity is told.
        assert!(said.warnings[0].contains("https"), "{:?}", said.warnings);
        assert_eq!(made.warnings, said.warnings);
        if let Some(Cloud::Aws(aws)) = said.cloud {
            let policy: serde_json::Value =
                serde_json::from_str(&aws.trust_policy).expect("a document");
            let host = said.issuer_url.replace("http://", "");
            let statement = &policy["Statement"][0];
            assert_eq!(
                statement["Principal"]["Federated"],
                format!("arn:aws-cn:iam::123456789012:oidc-provider/{host}")
            );
            let equals = &statement["Condition"]["StringEquals"];
            assert_eq!(equals[format!("{host}:sub")], identity.id);
            assert_eq!(equals[format!("{host}:aud")], said.audience);
        } else {
            assert!(said.terraform.contains(&identity.id));
        }
    }
}
