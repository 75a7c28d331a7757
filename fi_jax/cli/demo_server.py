"""Serve a page on which a face can be tried in the browser; pictures are not kept.

Listens on this machine alone unless --host says otherwise. Needs the extra: pip install 'fi_jax[demo]'.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--checkpoint", default="nano", metavar="RUN", help="a run folder or a bundled model (default: nano)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860; 0 for any free one)")
    parser.add_argument(
        "--allow-host", nargs="*", default=[], metavar="NAME", help="further names under which the page is reached"
    )


def run(args: argparse.Namespace) -> int:
    """Loads the model, warms it up and serves until interrupted."""
    import socket

    from fi_jax.errors import UserError

    try:
        from fi_jax.demo.app import make_app
        from fi_jax.demo.guard import make_server
    except ImportError as error:
        raise UserError(f"the demo server needs {error.name}; pip install 'fi_jax[demo]'") from error
    from fi_jax.demo.service import Service
    from fi_jax.weights.bundle import load_model

    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((args.host, args.port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen on {args.host}, port {args.port} ({error}); choose another --port or --host"
        ) from error
    port = listener.getsockname()[1]
    model = load_model(args.checkpoint)
    from fi_jax.cli.runtime import start

    start()
    from fi_jax.inference.answerer import load_answerer

    service = Service(load_answerer(model))
    print("compiling …", flush=True)
    service.warm_up()
    everywhere = args.host in ("0.0.0.0", "::")
    names = {"localhost", "127.0.0.1", "::1", args.host, *args.allow_host}
    if everywhere:
        names = names - {args.host} | {socket.gethostname()}
    shown = "localhost" if everywhere else f"[{args.host}]" if ":" in args.host else args.host
    print(f"http://{shown}:{port}/ (Ctrl-C stops)", flush=True)
    if args.host not in ("127.0.0.1", "localhost", "::1"):
        reach = f"any address of this machine and the names {', '.join(sorted(names))}" if everywhere else args.host
        print(
            f"Others can reach this page by {reach}, port {port}. It is a research demo: no login, no encryption; "
            "whoever reaches it can use it, and pictures cross the network in the clear.",
            flush=True,
        )
    make_server(make_app(service, names, any_address=everywhere)).run(sockets=[listener])
    return 0
