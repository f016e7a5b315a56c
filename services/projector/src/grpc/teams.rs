//! Teams and who is in them.

use edge::authorization;
use edge::hierarchy::Hierarchy;
use edge::layer::Call;
use edge::violations::Violations;
use edge::{request, status};
use model::{Kind, Principal, Reference};
use proto::directory::v1 as pb;
use proto::namespace;
use sqlx::PgPool;
use tonic::Status;

use super::keyed;
use crate::order::{self, Direction, Order};
use crate::page::Page;
use crate::query::teams::{self, Members, TeamRow, Teams};

/// Key and id, or time and name.
const KEYS: usize = 2;
/// How the read models begin the name of a user.
const USER: &str = "user:";

pub(super) async fn list(
    pool: &PgPool,
    message: &pb::ListTeamsRequest,
) -> Result<pb::ListTeamsResponse, Status> {
    let mut violations = Violations::default();
    let order = violations.check("order_by", Order::read(&message.order_by));
    let member = match message.member.as_str() {
        "" => Some(None),
        member => violations
            .check("member", Principal::user(member))
            .map(Some),
    };
    let (order, member) = violations.finish(|| Some((order?, member?)))?;
    let order = order.unwrap_or(Order::BY_NAME);
    let member = member.map(|member| member.to_string());
    let name_contains = message.name_contains.to_ascii_lowercase();
    let query = ("teams", &name_contains, &member, order);
    let page = Page::read(message.page_size, &message.page_token, &query, KEYS)?;
    let teams = Teams {
        name_contains: &name_contains,
        member: member.as_deref(),
        order,
        after: keyed(&page, order)?,
        limit: page.limit(),
    };
    let rows = teams::teams(pool, &teams).await;
    let mut rows = rows.map_err(|error| status::database(&error))?;
    let next_page_token = page.cut(&mut rows, |row| {
        let key = order.key(&row.name, row.created_at, row.updated_at);
        vec![key, row.id.clone()]
    });
    Ok(pb::ListTeamsResponse {
        teams: rows.into_iter().map(team).collect(),
        next_page_token,
    })
}

pub(super) async fn members(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListTeamMembersRequest,
) -> Result<pb::ListTeamMembersResponse, Status> {
    let named = &message.team_id;
    let reference = named.parse().ok();
    let reference = reference.filter(|reference: &Reference| reference.kind() == Kind::Team);
    let wrong = || Violations::of("team_id", "must be the id or the TRN of a team");
    let reference = reference.ok_or_else(wrong)?;
    let hierarchy = Hierarchy::new(pool.clone());
    let team = authorization::find(&hierarchy, &reference, &call.caller).await?;
    let team = team.ok_or_else(|| status::not_found(named))?;
    let id = team.id().to_string();
    let (by_time, direction) =
        member_order(&message.order_by).map_err(|error| Violations::of("order_by", error))?;
    let query = ("members", &id, &message.user_contains, (by_time, direction));
    let page = Page::read(message.page_size, &message.page_token, &query, KEYS)?;
    let after = match page.after.as_deref() {
        Some([at, principal]) => {
            let at = order::time(at).ok_or_else(Page::wrong_token)?;
            Some((at, principal.as_str()))
        }
        _ => None,
    };
    let list = Members {
        team: &id,
        user_contains: &message.user_contains,
        by_time,
        direction,
        after,
        limit: page.limit(),
    };
    let rows = teams::members(pool, &list).await;
    let mut rows = rows.map_err(|error| status::database(&error))?;
    let next_page_token = page.cut(&mut rows, |row| {
        vec![order::moment(row.added_at), row.principal.clone()]
    });
    let members = rows.into_iter().map(|row| pb::TeamMember {
        user: row
            .principal
            .strip_prefix(USER)
            .unwrap_or_default()
            .to_owned(),
        add_time: Some(request::timestamp(row.added_at)),
    });
    Ok(pb::ListTeamMembersResponse {
        members: members.collect(),
        next_page_token,
    })
}

/// Whether members are listed by when they were added, and in which direction.
fn member_order(text: &str) -> Result<(bool, Direction), &'static str> {
    const WRONG: &str = "must be user or add_time, with or without ` desc`, or empty";
    let by_user = Direction::read("user", text).map(|direction| (false, direction));
    let by_time = || Direction::read("add_time", text).map(|direction| (true, direction));
    let (by_time, direction) = by_user.or_else(|_| by_time()).map_err(|_| WRONG)?;
    Ok((by_time, direction.unwrap_or_default()))
}

fn team(row: TeamRow) -> namespace::v1::Team {
    namespace::v1::Team {
        id: row.id,
        trn: format!("trn:team:{}", row.name),
        name: row.name,
        description: row.description,
        etag: request::etag(row.version.cast_unsigned()),
        create_time: Some(request::timestamp(row.created_at)),
        update_time: Some(request::timestamp(row.updated_at)),
        member_count: i32::try_from(row.member_count).unwrap_or(i32::MAX),
    }
}
