set -e
umask 022
name=$1
hosts=$2
read -r _ _ ids < /proc/self/uid_map

# No sudo in the image, or one id only, with which the real one can do nothing: then this, which root alone can use.
if [ ! -x /usr/bin/sudo ] || [ "$ids" = 1 ]; then
    mkdir -p /usr/local/bin
    cat > /usr/local/bin/sudo << 'SUDO'
#!/bin/sh
# Root runs a command as root, or as somebody of this place.
user=root login=
while [ $# -gt 0 ]; do
    case $1 in
        -u) user=$2; shift 2 ;;
        --user=*) user=${1#--user=}; shift ;;
        -u*) user=${1#-u}; shift ;;
        -g|-p|-C|-h|-r|-t|-T) shift 2 ;;
        -i|--login) login=1; shift ;;
        -v|--validate|-K|--remove-timestamp) exit 0 ;;
        -l|--list) echo "may run: ALL"; exit 0 ;;
        -V|--version) echo "Sudo version: of testyard"; exit 0 ;;
        --) shift; break ;;
        -*) shift ;;
        *=*) export "$1"; shift ;;
        *) break ;;
    esac
done
if [ "$(id -u)" != 0 ]; then
    echo "sudo: only root can become another user here" >&2
    exit 1
fi
line=$(grep "^$user:" /etc/passwd) || { echo "sudo: unknown user $user" >&2; exit 1; }
IFS=: read -r _ _ uid gid _ home shell << LINE
$line
LINE
export HOME="$home" USER="$user" LOGNAME="$user" SUDO_USER="${USER:-root}" SUDO_UID=0 SUDO_GID=0
if [ -n "$login" ]; then
    cd "$home" 2> /dev/null || cd /
    [ $# -gt 0 ] || set -- "${shell:-/bin/sh}" -l
fi
[ $# -gt 0 ] || { echo "sudo: no command given" >&2; exit 1; }
[ "$uid" = 0 ] && exec "$@"
read -r _ _ ids < /proc/self/uid_map
[ "$ids" = 1 ] && exec unshare --user --map-user="$uid" --map-group="$gid" -- "$@"
exec setpriv --reuid="$uid" --regid="$gid" --init-groups -- "$@"
SUDO
    chmod 755 /usr/local/bin/sudo
fi

# The names of this place and of the others, in the file as it is: nobody's own lines are touched.
if [ -n "$hosts" ]; then
    old=
    ours=
    if [ -f /etc/hosts ]; then
        while IFS= read -r line || [ -n "$line" ]; do
            case $line in
                '# testyard: begin') ours=1 ;;
                '# testyard: end') ours= ;;
                *) [ -n "$ours" ] || old="$old$line
" ;;
            esac
        done < /etc/hosts
    fi
    [ -n "$old" ] || old='127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
'
    printf '%s# testyard: begin\n%s# testyard: end\n' "$old" "$hosts" > /etc/hosts
fi
[ -n "$name" ] || exit 0

# Whether somebody has this name, and the first number from 1000 on that neither a user nor a group has.
found=
numbers=:
while IFS=: read -r one _ number _; do
    [ "$one" = "$name" ] && found=1
    numbers="$numbers$number:"
done < /etc/passwd
if [ -z "$found" ]; then
    while IFS=: read -r _ _ number _; do
        numbers="$numbers$number:"
    done < /etc/group
    number=1000
    while case $numbers in *":$number:"*) true ;; *) false ;; esac; do
        number=$((number + 1))
    done
    shell=/bin/sh
    [ -x /bin/bash ] && shell=/bin/bash
    echo "$name:x:$number:" >> /etc/group
    echo "$name:x:$number:$number::/home/$name:$shell" >> /etc/passwd
    [ ! -f /etc/shadow ] || echo "$name:*:19000:0:99999:7:::" >> /etc/shadow
    if [ ! -d "/home/$name" ]; then
        # Few programs: each costs as much as all that the shell does itself.
        [ -d /home ] || mkdir /home
        if [ -d /etc/skel ]; then cp -a /etc/skel "/home/$name"; else mkdir "/home/$name"; fi
        [ "$ids" = 1 ] || chown -R "$number:$number" "/home/$name"
    fi
fi
if [ "$name" != root ]; then
    [ -d /etc/sudoers.d ] || mkdir /etc/sudoers.d
    if [ ! -f "/etc/sudoers.d/90-$name" ]; then
        umask 227
        echo "$name ALL=(ALL:ALL) NOPASSWD: ALL" > "/etc/sudoers.d/90-$name"
    fi
fi
