module drill

go 1.24

// Its source comes with kubeworker.
require kubeworker.invalid/apiclient v1.0.0

replace kubeworker.invalid/apiclient => ./apiclient
