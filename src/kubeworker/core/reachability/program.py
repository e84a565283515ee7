"""The Perl program of `probe`: one event loop that listens, connects and sends datagrams.

Arguments: the interface that has the node's address and its MTU (both may be empty), the run's nonce, the node's number
and address, the seconds that it lives without an order, the limit of a connection, how many it opens at once, how often
it sends a datagram; then what it watches: tcp/PORT, udp/PORT, icmp. Orders come by standard input, a line each. Nothing
but perl-base, iproute2 and Linux is needed.
"""

from __future__ import annotations

PROGRAM = r"""use strict;
use warnings;
use Errno;
use IO::Handle;
use POSIX ();
use Socket qw(:DEFAULT SOCK_NONBLOCK inet_pton pack_sockaddr_in6);

my ($interface, $mtu, $nonce, $number, $address, $seconds, $limit, $at_once, $passes, @watch) = @ARGV;
# Linux's own numbers: linux/in.h, linux/in6.h, linux/filter.h, asm-generic/socket.h.
my ($IP, $ICMP4, $TCP, $UDP, $IPV6, $ICMP6) = (0, 1, 6, 17, 41, 58);
my ($IP_MTU_DISCOVER, $IP_MTU, $IPV6_MTU_DISCOVER, $IPV6_MTU, $IPV6_DONTFRAG) = (10, 14, 23, 24, 62);
my $PMTUDISC_PROBE = 3;
my ($SO_ATTACH_FILTER, $SO_SNDBUFFORCE, $SO_RCVBUFFORCE) = (26, 32, 33);

my $MARK = "kubeworker $nonce";
my $six = $address =~ /:/;
my $family = $six ? AF_INET6 : AF_INET;
my ($icmp, $echo_request) = $six ? ($ICMP6, 128) : ($ICMP4, 8);
my $headers = ($six ? 40 : 20) + 8;

# Its end: the channel's end, or this many seconds without an order.
alarm $seconds;
$SIG{PIPE} = 'IGNORE';
$| = 1;

sub tell_all {
  print(join("\t", map { s/[\t\n]/ /gr } @_), "\n") or exit 1;
}

sub now {
  return (POSIX::times())[0] / POSIX::sysconf(&POSIX::_SC_CLK_TCK);
}

sub place {
  my ($host, $port) = @_;
  my $packed = inet_pton($family, $host);
  return $six ? pack_sockaddr_in6($port, $packed) : pack_sockaddr_in($port, $packed);
}

# A socket on the node's own address; undefined, with the reason in $!.
sub endpoint {
  my ($type, $protocol, $port) = @_;
  socket(my $socket, $family, $type | SOCK_NONBLOCK, $protocol) or return;
  setsockopt($socket, SOL_SOCKET, SO_REUSEADDR, 1) if $type == SOCK_STREAM;
  return bind($socket, place($address, $port)) ? $socket : undef;
}

# ---- What is watched

# The process that holds a port on this address or on all; empty where ss shows none: the kernel itself.
sub holder {
  my ($option, $port) = @_;
  for (`ss -Hnp $option 2>&1`) {
    my $local = (split)[3] // '';
    next unless $local =~ s/:$port$//;
    next unless $local =~ /^(\*|0\.0\.0\.0|\[::\]|\[?\Q$address\E\]?)(%.*)?$/;
    return $1 if /users:\(\("([^"]*)"/;
  }
  return '';
}

my %accepting;  # listeners by descriptor
my %heard;  # by descriptor: [socket, word, bytes before the payload, port]

sub watch {
  my ($word) = @_;
  my ($kind, $port) = split m{/}, $word;
  if ($kind eq 'tcp') {
    my $socket = endpoint(SOCK_STREAM, $TCP, $port);
    if ($socket && listen($socket, 1024)) {
      $accepting{fileno $socket} = $socket;
      return ('own', '');
    }
    return $!{EADDRINUSE} ? ('held', holder('-lt', $port)) : ('failed', "$!");
  }
  if ($kind eq 'udp') {
    if (my $socket = endpoint(SOCK_DGRAM, $UDP, $port)) {
      $heard{fileno $socket} = [$socket, $word, 0, 0];
      return ('own', '');
    }
    return ('failed', "$!") unless $!{EADDRINUSE};
  }
  my $socket = endpoint(SOCK_RAW, $kind eq 'udp' ? $UDP : $icmp, 0) or return ('failed', "$!");
  marked_only($socket) or return ('failed', "$!");
  $heard{fileno $socket} = [$socket, $word, 8, $port || 0];
  return $kind eq 'udp' ? ('held', holder('-lu', $port)) : ('own', '');
}

# A raw socket gets all datagrams of the node. The kernel is to let through those that have the mark behind their eight
# zero bytes: with IPv4 the packet begins with the IP header, with IPv6 behind it.
sub marked_only {
  my ($socket) = @_;
  my @program = (
    $six ? [0x20, 0, 0, 16] : ([0xb1, 0, 0, 0], [0x40, 0, 0, 16]),  # A = the four bytes at 16 (behind the IP header)
    [0x15, 0, 1, unpack 'N', $MARK],  # other than the mark's first four: skip one
    [0x06, 0, 0, 0xffffffff],  # take the packet
    [0x06, 0, 0, 0],  # drop it
  );
  my $code = join '', map { pack 'SCCL', @$_ } @program;
  return setsockopt($socket, SOL_SOCKET, $SO_ATTACH_FILTER, pack 'S x![J] P', scalar @program, $code);
}

my %told;  # what has arrived is told once

sub hear {
  my ($socket, $word, $skip, $port) = @{$_[0]};
  while (defined recv($socket, my $packet, 65535, 0)) {
    if ($skip) {
      $packet = substr $packet, 4 * (ord($packet) & 15) unless $six;
      next if length $packet <= $skip;
      next unless $port ? unpack('x2n', $packet) == $port : ord($packet) == $echo_request;
    }
    next unless substr($packet, $skip) =~ /^\0{8}\Q$MARK\E (\d+) (\d+) /;
    tell_all('got', $word, $1, $2) unless $told{"$word $1 $2"}++;
  }
}

# Who connects gets the mark and this node's number; the connection stays until the peer has closed it.
my %answered;  # by descriptor: [socket, deadline]

sub answer {
  my ($listener) = @_;
  accept(my $socket, $listener) or return;
  $socket->blocking(0);
  syswrite $socket, "$MARK $number\n";
  $answered{fileno $socket} = [$socket, now() + $limit];
}

# ---- Connections of its own

my @waiting;  # [peer, host, port, whether the peer's probe must answer]
my %trying;  # by descriptor: [socket, peer, port, must answer, deadline, text: undefined before it is open]

sub failed {
  my ($peer, $port) = @_;
  my $outcome =
      $!{ECONNREFUSED} ? 'refused'
    : $!{EHOSTUNREACH} || $!{ENETUNREACH} ? 'no-route'
    : $!{ETIMEDOUT} ? 'timeout'
    : 'error';
  tell_all('connected', $peer, $port, $outcome, "$!");
}

sub try_one {
  my ($peer, $host, $port, $ours) = @{$_[0]};
  my $socket = endpoint(SOCK_STREAM, $TCP, 0) or return failed($peer, $port);
  connect($socket, place($host, $port)) or $!{EINPROGRESS} or return failed($peer, $port);
  $trying{fileno $socket} = [$socket, $peer, $port, $ours, now() + $limit, undef];
}

sub settle {
  my ($key, $outcome, $detail) = @_;
  my $try = delete $trying{$key};
  tell_all('connected', @$try[1, 2], $outcome, $detail);
}

sub opened {
  my ($key) = @_;
  my $try = $trying{$key};
  if ($! = unpack 'i', getsockopt($try->[0], SOL_SOCKET, SO_ERROR)) {
    failed(@$try[1, 2]);
    delete $trying{$key};
  } elsif ($try->[3]) {
    $try->[5] = '';
  } else {
    settle($key, 'open', '');
  }
}

sub read_answer {
  my ($key) = @_;
  my $try = $trying{$key};
  my $count = sysread $try->[0], $try->[5], 256, length $try->[5];
  return if !defined $count && $!{EAGAIN};
  my $text = $try->[5];
  return settle($key, 'ours', '') if $text eq "$MARK $try->[1]\n";
  return if $count && length $text < 256 && $text !~ /\n/;
  $text =~ s/[^ -~]+/ /g;
  settle($key, 'other', substr $text, 0, 60);
}

# ---- Datagrams

my @sending;  # {socket, word, peer, sizes, left, due, too_big, error}

sub checksum {
  my ($bytes) = @_;
  my $sum = unpack '%32n*', length($bytes) % 2 ? "$bytes\0" : $bytes;
  $sum = ($sum >> 16) + ($sum & 0xffff) while $sum >> 16;
  return ~$sum & 0xffff;
}

# What a socket takes for an IP packet of that size.
sub datagram {
  my ($kind, $size) = @_;
  my $payload = "\0" x 8 . "$MARK $number $size ";
  $payload .= "\0" x ($size - $headers - length $payload);
  return $payload if $kind eq 'udp';
  my $echo = pack('CCnnn', $echo_request, 0, 0, $$ & 0xffff, $size & 0xffff) . $payload;
  # Of ICMPv6 the kernel fills in the checksum (RFC 3542, 3.1).
  substr $echo, 2, 2, pack 'n', checksum($echo) unless $six;
  return $echo;
}

sub prepare {
  my ($word, $peer, $host, $sizes) = @_;
  my ($kind, $port) = split m{/}, $word;
  my $socket = endpoint($kind eq 'udp' ? (SOCK_DGRAM, $UDP) : (SOCK_RAW, $icmp), 0);
  if ($socket && connect($socket, place($host, $port || 0))) {
    # Never in fragments, and whatever the kernel remembers of the path (ip(7), IP_PMTUDISC_PROBE).
    setsockopt($socket, $six ? $IPV6 : $IP, $six ? $IPV6_MTU_DISCOVER : $IP_MTU_DISCOVER, pack 'i', $PMTUDISC_PROBE);
    setsockopt($socket, $IPV6, $IPV6_DONTFRAG, pack 'i', 1) if $six;
    setsockopt($socket, SOL_SOCKET, $SO_SNDBUFFORCE, 4 << 20);
    push @sending, {
      socket => $socket, word => $word, peer => $peer, sizes => [split /,/, $sizes],
      left => $passes, due => now(), too_big => {}, error => '',
    };
  } else {
    tell_all('sent', $word, $peer, 0, '', "$!");
  }
}

sub send_pass {
  my ($send) = @_;
  my ($kind) = split m{/}, $send->{word};
  for my $size (@{$send->{sizes}}) {
    my $packet = datagram($kind, $size);
    # The first failure may be the news of an earlier packet (udp(7)): only the second is this one's.
    if (defined send($send->{socket}, $packet, 0) || defined send($send->{socket}, $packet, 0)) {
      delete $send->{too_big}{$size};
    } elsif ($!{EMSGSIZE}) {
      $send->{too_big}{$size} = 1;
    } elsif (!$!{ECONNREFUSED} && !$!{EAGAIN} && !$!{ENOBUFS}) {
      $send->{error} = "$!";
    }
  }
  $send->{due} = now() + 0.15;
  return if --$send->{left};
  my $known = getsockopt($send->{socket}, $six ? $IPV6 : $IP, $six ? $IPV6_MTU : $IP_MTU);
  my $too_big = join ',', sort { $a <=> $b } keys %{$send->{too_big}};
  tell_all('sent', $send->{word}, $send->{peer}, $known ? unpack 'i', $known : 0, $too_big, $send->{error});
}

# ---- The loop

my $orders = '';

sub obey {
  sysread STDIN, $orders, 65536, length $orders or exit 0;
  alarm $seconds;
  while ($orders =~ s/^(.*)\n//) {
    my ($verb, @words) = split ' ', $1;
    if ($verb eq 'connect') { push @waiting, [@words[0 .. 2], $words[3] eq 'ours'] }
    elsif ($verb eq 'send') { prepare(@words) }
  }
}

for my $word (@watch) {
  my ($state, $detail) = watch($word);
  tell_all('watched', $word, $state, $detail);
}
setsockopt($_->[0], SOL_SOCKET, $SO_RCVBUFFORCE, 4 << 20) for values %heard;
tell_all('ready', $interface, $mtu);

while (1) {
  try_one(shift @waiting) while @waiting && keys %trying < $at_once;
  send_pass($_) for grep { $_->{due} <= now() } @sending;
  @sending = grep { $_->{left} } @sending;

  my ($reading, $writing) = ('', '');
  vec($reading, $_, 1) = 1 for fileno STDIN, keys %heard, keys %accepting, keys %answered;
  vec(defined $trying{$_}[5] ? $reading : $writing, $_, 1) = 1 for keys %trying;
  select $reading, $writing, undef, @sending || %trying || %answered ? 0.05 : undef;

  hear($heard{$_}) for grep { vec $reading, $_, 1 } keys %heard;
  for my $key (keys %trying) {
    if (vec $writing, $key, 1) { opened($key) }
    elsif (vec $reading, $key, 1) { read_answer($key) }
  }
  for my $key (grep { $trying{$_}[4] <= now() } keys %trying) {
    settle($key, defined $trying{$key}[5] ? 'other' : 'timeout', '');
  }
  for my $key (keys %answered) {
    my ($socket, $deadline) = @{$answered{$key}};
    my $over = $deadline <= now() || vec($reading, $key, 1) && !sysread $socket, my $rest, 256;
    delete $answered{$key} if $over;
  }
  # Last, for a new connection may have the descriptor of one that has just ended.
  answer($accepting{$_}) for grep { vec $reading, $_, 1 } keys %accepting;
  obey() if vec $reading, fileno(STDIN), 1;
}
"""
