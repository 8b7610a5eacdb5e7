package rpc

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// Users serves UserService.
type Users struct {
	watchwordv1.UnimplementedUserServiceServer
	Users *user.Users
}

// CreateUser serves UserService/CreateUser.
func (s *Users) CreateUser(ctx context.Context, req *watchwordv1.CreateUserRequest) (*watchwordv1.CreateUserResponse, error) {
	name, err := parse("username", user.ParseName, req.GetUsername())
	if err != nil {
		return nil, err
	}
	pw, err := parse("password", password.Parse, req.GetPassword())
	if err != nil {
		return nil, err
	}
	roles, err := parse("roles", user.ParseRoles, req.GetRoles())
	if err != nil {
		return nil, err
	}
	row, err := s.Users.Create(ctx, callerOf(ctx), name, roles, pw)
	return &watchwordv1.CreateUserResponse{User: userMessage(row)}, nameWeakField("password", err)
}

// GetUser serves UserService/GetUser.
func (s *Users) GetUser(ctx context.Context, req *watchwordv1.GetUserRequest) (*watchwordv1.GetUserResponse, error) {
	row, err := s.find(ctx, req)
	return &watchwordv1.GetUserResponse{User: userMessage(row)}, err
}

func (s *Users) find(ctx context.Context, req *watchwordv1.GetUserRequest) (*store.User, error) {
	switch key := req.GetKey().(type) {
	case *watchwordv1.GetUserRequest_Id:
		if err := checkID("id", key.Id); err != nil {
			return nil, err
		}
		return s.Users.Get(ctx, key.Id)
	case *watchwordv1.GetUserRequest_Username:
		name, err := parse("username", user.ParseName, key.Username)
		if err != nil {
			return nil, err
		}
		return s.Users.GetByName(ctx, name)
	}
	return nil, invalid("id", "id or username is required")
}

// ListUsers serves UserService/ListUsers.
func (s *Users) ListUsers(ctx context.Context, req *watchwordv1.ListUsersRequest) (*watchwordv1.ListUsersResponse, error) {
	page, err := parsePage(req, "users")
	if err != nil {
		return nil, err
	}
	rows, more, err := s.Users.List(ctx, page.after, page.size)
	if err != nil {
		return nil, err
	}
	resp := &watchwordv1.ListUsersResponse{Users: messages(rows, userMessage)}
	if more {
		resp.NextPageToken = page.next(rows[len(rows)-1].ID)
	}
	return resp, nil
}

// UpdateUser serves UserService/UpdateUser.
func (s *Users) UpdateUser(ctx context.Context, req *watchwordv1.UpdateUserRequest) (*watchwordv1.UpdateUserResponse, error) {
	id := req.GetUser().GetId()
	if err := checkID("user.id", id); err != nil {
		return nil, err
	}
	change, err := parseChange(req)
	if err != nil {
		return nil, err
	}
	row, err := s.Users.Update(ctx, callerOf(ctx), id, change)
	return &watchwordv1.UpdateUserResponse{User: userMessage(row)}, err
}

// parseChange reads an update mask (AIP-134).
func parseChange(req *watchwordv1.UpdateUserRequest) (change user.Change, err error) {
	u, paths := req.GetUser(), req.GetUpdateMask().GetPaths()
	switch {
	case len(paths) == 0:
		paths = populated(u)
	case slices.Equal(paths, []string{"*"}):
		paths = []string{"username", "roles", "disabled"}
	case slices.Contains(paths, "*"):
		return change, invalid("update_mask", "* must be the only path")
	}
	for _, path := range paths {
		switch path {
		case "username":
			var name user.Name
			name, err = parse("user.username", user.ParseName, u.GetUsername())
			change.Name = &name
		case "roles":
			var roles user.Roles
			roles, err = parse("user.roles", user.ParseRoles, u.GetRoles())
			change.Roles = &roles
		case "disabled":
			disabled := u.GetDisabled()
			change.Disabled = &disabled
		default:
			err = invalid("update_mask", "a path must be username, roles or disabled")
		}
		if err != nil {
			return user.Change{}, err
		}
	}
	return change, nil
}

func populated(u *watchwordv1.User) []string {
	var paths []string
	if u.GetUsername() != "" {
		paths = append(paths, "username")
	}
	if len(u.GetRoles()) > 0 {
		paths = append(paths, "roles")
	}
	if u.GetDisabled() {
		paths = append(paths, "disabled")
	}
	return paths
}

// DeleteUser serves UserService/DeleteUser.
func (s *Users) DeleteUser(ctx context.Context, req *watchwordv1.DeleteUserRequest) (*watchwordv1.DeleteUserResponse, error) {
	err := checkID("id", req.GetId())
	if err == nil {
		err = s.Users.Delete(ctx, callerOf(ctx), req.GetId())
	}
	return &watchwordv1.DeleteUserResponse{}, err
}

// SetPassword serves UserService/SetPassword.
func (s *Users) SetPassword(ctx context.Context, req *watchwordv1.SetPasswordRequest) (*watchwordv1.SetPasswordResponse, error) {
	if err := checkID("id", req.GetId()); err != nil {
		return nil, err
	}
	pw, err := parse("password", password.Parse, req.GetPassword())
	if err != nil {
		return nil, err
	}
	row, err := s.Users.SetPassword(ctx, callerOf(ctx), req.GetId(), pw)
	return &watchwordv1.SetPasswordResponse{User: userMessage(row)}, nameWeakField("password", err)
}

// userMessage returns nil without a row.
func userMessage(row *store.User) *watchwordv1.User {
	if row == nil {
		return nil
	}
	return &watchwordv1.User{
		Id: row.ID, Username: row.Username, Roles: row.Roles, Disabled: row.Disabled,
		CreatedAt: timestamppb.New(row.CreatedAt), UpdatedAt: timestamppb.New(row.UpdatedAt),
	}
}
