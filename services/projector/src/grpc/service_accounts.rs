//! Service accounts of groups.

use edge::layer::Call;
use edge::violations::Violations;
use edge::{request, status};
use model::Kind;
use prost::Message as _;
use proto::directory::v1 as pb;
use proto::identity;
use sqlx::PgPool;
use tonic::Status;

use super::{expect, groups, path_of};
use crate::order::Order;
use crate::query::from_above::{self, List};
use crate::query::service_accounts::{self, AccountRow};

pub(super) async fn list(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListServiceAccountsRequest,
) -> Result<pb::ListServiceAccountsResponse, Status> {
    let place = call.place()?;
    let id = expect(place, Kind::Group, "group_id")?.to_string();
    let mut violations = Violations::default();
    let order = violations.check("order_by", Order::read(&message.order_by));
    let order = violations.finish(|| order)?;
    let name_contains = message.name_contains.to_ascii_lowercase();
    let query = (
        "service accounts",
        &id,
        message.exclude_inherited,
        &name_contains,
    );
    let page = List::page(order, (message.page_size, &message.page_token), &query)?;
    let list = List {
        places: &groups(place, message.exclude_inherited),
        narrowed_to: ["", &name_contains],
        order,
    };
    let rows = from_above::list(pool, &service_accounts::inherited(), &list, &page).await;
    let (rows, next_page_token) = rows.map_err(|error| status::database(&error))?;
    let service_accounts = rows
        .into_iter()
        .map(|row: AccountRow| listed(path_of(place, &row.group_id), row));
    Ok(pb::ListServiceAccountsResponse {
        service_accounts: service_accounts.collect::<Result<_, _>>()?,
        next_page_token,
    })
}

fn listed(group_path: String, row: AccountRow) -> Result<pb::DirectoryServiceAccount, Status> {
    let kept = identity::v1::ServiceAccount::decode(row.trust_policies.as_slice());
    let account = identity::v1::ServiceAccount {
        trn: format!("trn:service_account:{group_path}/{}", row.name),
        id: row.id,
        group_id: row.group_id,
        name: row.name,
        description: row.description,
        trust_policies: kept
            .map_err(|error| status::internal(&error))?
            .trust_policies,
        etag: request::etag(row.version.cast_unsigned()),
        create_time: Some(request::timestamp(row.created_at)),
        update_time: Some(request::timestamp(row.updated_at)),
    };
    Ok(pb::DirectoryServiceAccount {
        service_account: Some(account),
        inherited: row.distance > 0,
        group_path,
    })
}
