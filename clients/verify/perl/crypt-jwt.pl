# Reads an access token from each line of standard input, and answers with a line: "ok" and the
# user's id, or "refused" and the error of the library.

use strict;
use warnings;

use Crypt::JWT qw(decode_jwt);
use HTTP::Tiny;
use JSON::PP qw(decode_json);

my ($issuer, $audience, $jwks_uri) = @ARGV;
my ($keys, $fetched) = (undef, 0);
$| = 1;

# An unknown kid causes a fetch of the JWKS, at most once in 5 seconds: forged tokens must not
# flood the Watchword server. A withdrawn key is gone after 300 seconds.
sub keys_for {
    my ($kid) = @_;
    my $known = $keys && grep { $_->{kid} eq $kid } @{ $keys->{keys} };
    my $age   = time - $fetched;
    if ($age > 300 || (!$known && $age > 5)) {
        my $answer = HTTP::Tiny->new(timeout => 10)->get($jwks_uri);
        die "the JWKS: $answer->{status}\n" unless $answer->{success};
        ($keys, $fetched) = (decode_json($answer->{content}), time);
    }
    return $keys;
}

sub verify {
    my ($token) = @_;
    my ($header) = decode_jwt(token => $token, decode_header => 1, ignore_signature => 1, verify_exp => 0);
    return decode_jwt(
        token        => $token,
        kid_keys     => keys_for($header->{kid}),
        accepted_alg => [qw(EdDSA ES256 RS256)],
        verify_iss   => sub { $_[0] eq $issuer },
        verify_exp   => 1,
    );
}

while (my $token = <STDIN>) {
    chomp $token;
    my $said = eval {
        my $claims = verify($token);
        my $named  = $claims->{aud}; # a text or a list
        die "wrong audience\n" unless grep { $_ eq $audience } ref $named ? @$named : $named;
        "ok $claims->{sub}";
    } // "refused $@";
    $said =~ s/\s+/ /g;
    print "$said\n";
}
