"""Where a request goes, by what workers hold and how busy they are. Pure: no sockets, no clock."""
