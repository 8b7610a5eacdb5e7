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
	by, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
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
	row, err := s.Users.Create(ctx, by, name, roles, pw)
	if err != nil {
		return nil, weakField("password", err)
	}
	return &watchwordv1.CreateUserResponse{User: userMessage(row)}, nil
}

// GetUser serves UserService/GetUser.
func (s *Users) GetUser(ctx context.Context, req *watchwordv1.GetUserRequest) (*watchwordv1.GetUserResponse, error) {
	var row *store.User
	var err error
	switch key := req.GetKey().(type) {
	case *watchwordv1.GetUserRequest_Id:
		if err := checkID("id", key.Id); err != nil {
			return nil, err
		}
		row, err = s.Users.Get(ctx, key.Id)
	case *watchwordv1.GetUserRequest_Username:
		name, invalid := parse("username", user.ParseName, key.Username)
		if invalid != nil {
			return nil, invalid
		}
		row, err = s.Users.GetByName(ctx, name)
	default:
		return nil, invalid("id", "one of id and username is required")
	}
	if err != nil {
		return nil, err
	}
	return &watchwordv1.GetUserResponse{User: userMessage(row)}, nil
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
	resp := &watchwordv1.ListUsersResponse{}
	for _, row := range rows {
		resp.Users = append(resp.Users, userMessage(row))
	}
	if more {
		resp.NextPageToken = page.token(rows[len(rows)-1].ID)
	}
	return resp, nil
}

// UpdateUser serves UserService/UpdateUser.
func (s *Users) UpdateUser(ctx context.Context, req *watchwordv1.UpdateUserRequest) (*watchwordv1.UpdateUserResponse, error) {
	by, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkID("user.id", req.GetUser().GetId()); err != nil {
		return nil, err
	}
	change, err := parseChange(req)
	if err != nil {
		return nil, err
	}
	row, err := s.Users.Update(ctx, by, req.GetUser().GetId(), change)
	if err != nil {
		return nil, err
	}
	return &watchwordv1.UpdateUserResponse{User: userMessage(row)}, nil
}

// parseChange reads a mask as AIP-134 has it.
func parseChange(req *watchwordv1.UpdateUserRequest) (user.Change, error) {
	u := req.GetUser()
	paths := req.GetUpdateMask().GetPaths()
	switch {
	case len(paths) == 0:
		paths = populated(u)
	case slices.Contains(paths, "*"):
		if len(paths) > 1 {
			return user.Change{}, invalid("update_mask", "* stands alone")
		}
		paths = []string{"username", "roles", "disabled"}
	}
	var change user.Change
	for _, path := range paths {
		switch path {
		case "username":
			name, err := parse("user.username", user.ParseName, u.GetUsername())
			if err != nil {
				return user.Change{}, err
			}
			change.Name = &name
		case "roles":
			roles, err := parse("user.roles", user.ParseRoles, u.GetRoles())
			if err != nil {
				return user.Change{}, err
			}
			change.Roles = &roles
		case "disabled":
			disabled := u.GetDisabled()
			change.Disabled = &disabled
		default:
			return user.Change{}, invalid("update_mask", "names a field that is none of username, roles, disabled")
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
	by, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkID("id", req.GetId()); err != nil {
		return nil, err
	}
	if err := s.Users.Delete(ctx, by, req.GetId()); err != nil {
		return nil, err
	}
	return &watchwordv1.DeleteUserResponse{}, nil
}

// SetPassword serves UserService/SetPassword.
func (s *Users) SetPassword(ctx context.Context, req *watchwordv1.SetPasswordRequest) (*watchwordv1.SetPasswordResponse, error) {
	by, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkID("id", req.GetId()); err != nil {
		return nil, err
	}
	pw, err := parse("password", password.Parse, req.GetPassword())
	if err != nil {
		return nil, err
	}
	row, err := s.Users.SetPassword(ctx, by, req.GetId(), pw)
	if err != nil {
		return nil, weakField("password", err)
	}
	return &watchwordv1.SetPasswordResponse{User: userMessage(row)}, nil
}

func userMessage(row *store.User) *watchwordv1.User {
	return &watchwordv1.User{
		Id: row.ID, Username: row.Username, Roles: row.Roles, Disabled: row.Disabled,
		CreatedAt: timestamppb.New(row.CreatedAt), UpdatedAt: timestamppb.New(row.UpdatedAt),
	}
}
