# Reads an access token from each line of standard input, and answers with a line: "ok" and the
# user's id, or "refused" and the error of the library.

require 'json'
require 'net/http'

ISSUER, AUDIENCE, JWKS_URI = ARGV

def answer
  while (token = $stdin.gets)
    begin
      line = "ok #{yield(token.strip)['sub']}"
    rescue StandardError => e
      line = "refused #{e.class}: #{e.message}"
    end
    puts line.tr("\n", ' ')
    $stdout.flush
  end
end

# jwks returns the JWKS. With fresh, jwks fetches the JWKS again, at most once in 5 seconds:
# forged tokens must not flood the Watchword server. A withdrawn key is gone after 300 seconds.
def jwks(fresh: false)
  now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  age = @fetched ? now - @fetched : Float::INFINITY
  return @jwks unless age > 300 || (fresh && age > 5)

  @fetched = now
  @jwks = JSON.parse(Net::HTTP.get(URI(JWKS_URI)))
end
